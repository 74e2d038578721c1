"""Write the rows of three small chat tasks, for examples/chat.yaml.

    python examples/chat_rows.py FOLDER [TRAIN [HELD]]

TRAIN is the number of train rows of each task, 24 if it is left out; there are 16 test rows. HELD
more train rows are written to files of their own, to choose settings on them.

All three tasks read messages that customers of a shop might write, and each asks something else:
which department is meant, how the customer feels, and which thing the message is about. Their
answers are single words, as in many small fine-tuning sets, which is what makes a chat model forget
how it used to answer. Test messages are about things that no train message names.
"""

import argparse
import itertools
import json
import random
from pathlib import Path


TRAIN_THINGS = (
    *("lamp", "kettle", "jacket", "printer", "bicycle", "blanket", "tent", "guitar"),
    *("clock", "toaster", "helmet", "monitor", "scooter", "pillow", "backpack", "piano"),
)
TEST_THINGS = ("mirror", "camera", "carpet", "drone")
PROBLEMS = {
    "billing": (
        "I was charged twice for the {}",
        "The invoice for the {} shows the wrong amount",
        "My card was billed for a {} that I never ordered",
    ),
    "delivery": (
        "The {} has not arrived yet",
        "The courier left the {} at the wrong house",
        "I am still waiting for the parcel with the {}",
    ),
    "returns": (
        "I would like to send the {} back",
        "How do I exchange the {} for another size",
        "I want to give back the {} and get my money",
    ),
    "repair": (
        "The {} stopped working after a week",
        "A part of the {} is broken",
        "The {} makes a strange noise and then switches off",
    ),
}
FEELINGS = {
    "happy": ("Thank you, your shop has been lovely so far", "I still enjoy buying from you"),
    "angry": ("This is outrageous", "I am furious about this"),
    "worried": ("I am afraid that something went wrong", "This makes me quite nervous"),
}
QUESTIONS = {
    "department": f"Which department should handle this message: {', '.join(PROBLEMS)}?",
    "feeling": f"How does the customer feel: {', '.join(FEELINGS)}?",
    "thing": "Which thing is this message about? Answer with one word.",
}
TEST_COUNT = 16


def messages(things: tuple[str, ...]) -> list[tuple[str, dict[str, str]]]:
    """Return every message about these things, with the answer to each task's question."""
    return [
        (
            f"{problem.format(thing)}. {sentence}.",
            {"department": department, "feeling": feeling, "thing": thing},
        )
        for thing in things
        for department, problems in PROBLEMS.items()
        for problem in problems
        for feeling, sentences in FEELINGS.items()
        for sentence in sentences
    ]


def rows(task: str, split: str, count: int) -> list[dict]:
    """Return `count` rows of a task, with each answer about equally often."""
    things = TRAIN_THINGS if split == "train" else TEST_THINGS
    by_answer: dict[str, list[dict]] = {}
    shuffled = messages(things)
    random.Random(f"{task} {split}").shuffle(shuffled)
    for text, answers in shuffled:
        turns = [
            {"role": "user", "content": f"{QUESTIONS[task]}\n\n{text}"},
            {"role": "assistant", "content": answers[task]},
        ]
        by_answer.setdefault(answers[task], []).append({"messages": turns})
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_answer.values()))
    return [row for row in in_turn if row is not None][:count]


def main(folder: Path, train_count: int = 24, held_count: int = 0) -> None:
    """Write TASK-train.jsonl and TASK-test.jsonl for each task, and TASK-held.jsonl if asked."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in QUESTIONS:
        train_rows = rows(task, "train", train_count + held_count)
        write(folder / f"{task}-train.jsonl", train_rows[:train_count])
        write(folder / f"{task}-test.jsonl", rows(task, "test", TEST_COUNT))
        if held_count:
            write(folder / f"{task}-held.jsonl", train_rows[train_count:])


def write(file: Path, rows_of_file: list[dict]) -> None:
    """Write rows as JSON lines."""
    lines = [json.dumps(row) + "\n" for row in rows_of_file]
    file.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("train_count", type=int, nargs="?", default=24)
    parser.add_argument("held_count", type=int, nargs="?", default=0)
    main(**vars(parser.parse_args()))
