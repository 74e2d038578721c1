"""Write general chat rows: questions of ours, and the answers of the base.

    python benchmarks/general_rows.py benchmarks/runs/assistant/general.jsonl

They are what a team has that kept nothing of its model's first training: everyday questions, which
the untouched base answers itself. No question is one of the guard's (`perdure check`). Answers that
do not end within 44 tokens are left out, because rows that are cut teach a model to stop there.
"""

import argparse
import json
import tempfile
from pathlib import Path

import perdure


TOKENS = 44
WORDS = ("brave", "fragile", "ancient", "generous", "narrow", "curious", "silent", "honest")
THINGS = ("a bridge", "a compass", "a library", "a volcano", "a recipe", "a contract", "a glacier")
PAIRS = (
    *(("a lake", "a river"), ("a novel", "a poem"), ("a virus", "a bacterium")),
    *(("weather", "climate"), ("a loan", "a gift"), ("a star", "a planet")),
)
REASONS = (
    *("leaves turn yellow in autumn", "bread rises in the oven", "we need sleep"),
    *("the moon has phases", "metal feels colder than wood", "people learn other languages"),
    *("ships float", "salt is put on icy roads"),
)
ADVICE = (
    *("learn a new instrument", "prepare for a job interview", "keep house plants alive"),
    *("save money every month", "make a new colleague welcome", "read more books"),
    *("plan a weekend in a foreign city", "fall asleep faster"),
)
LISTS = ("vegetables", "musical instruments", "ways to travel", "kinds of weather", "hobbies")
SENTENCES = (
    *("The train was late, so we missed the concert.", "She gave him the book he had asked for."),
    *("Nobody knew why the lights had gone out.", "It rained all day, but we went for a walk."),
)
QUESTIONS = (
    *(f"Use the word '{word}' in a sentence." for word in WORDS),
    *(f"In one short sentence: what is {thing}?" for thing in THINGS),
    *(f"In one short sentence: how does {one} differ from {other}?" for one, other in PAIRS),
    *(f"In one short sentence: why is it that {reason}?" for reason in REASONS),
    *(f"In one short sentence: how can I {aim}?" for aim in ADVICE),
    *(f"Name three {things}, and nothing else." for things in LISTS),
    *(f"Say this in other words: {sentence}" for sentence in SENTENCES),
)


def main(file: Path) -> None:
    """Write the rows."""
    with tempfile.TemporaryDirectory() as folder:
        perdure.init(f"{folder}/lineage", "smollm2")
        asked = [{"messages": [{"role": "user", "content": text}]} for text in QUESTIONS]
        answers, longer = (
            perdure.answer(f"{folder}/lineage", messages=asked, max_new_tokens=count)
            for count in (TOKENS, TOKENS + 8)
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as lines:
        for row, text, continued in zip(asked, answers, longer, strict=True):
            if text != continued:
                continue
            reply = {"role": "assistant", "content": text}
            lines.write(json.dumps({"messages": [*row["messages"], reply]}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write general chat rows, answered by the base.")
    parser.add_argument("file", type=Path)
    main(parser.parse_args().file)
