"""Local tasks of lm-eval for the tiny models: one of choices, and one of generated answers."""

import json
from pathlib import Path

from command import write_rows


TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOOSE = """
task: choose
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """
task: write
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 3}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
QUESTIONS = [
    f"question {adjective} {noun} is"
    for adjective in ("red", "green", "blue", "good")
    for noun in ("cat", "dog", "bird")
]
CHOICES = ["up left", "down right"]


def write_tasks(folder: Path, labels: list[int], answers: list[str]) -> Path:
    """A folder with the tasks `choose` and `write`, whose documents have these answers."""
    folder.mkdir(exist_ok=True)
    choose, write = folder / "choose.jsonl", folder / "write.jsonl"
    choices = [
        {"question": question, "choices": CHOICES, "label": label}
        for question, label in zip(QUESTIONS, labels, strict=True)
    ]
    written = [{"question": q, "answer": a} for q, a in zip(QUESTIONS, answers, strict=True)]
    write_rows(choose, choices)
    write_rows(write, written)
    (folder / "choose.yaml").write_text(CHOOSE + TASK.format(rows=json.dumps(str(choose))))
    (folder / "write.yaml").write_text(WRITE + TASK.format(rows=json.dumps(str(write))))
    return folder
