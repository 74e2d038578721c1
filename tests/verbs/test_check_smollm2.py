"""`check` on a real chat model: a narrow task learned too hard, and the model as it was."""

import json
import shutil
from pathlib import Path

import pytest

import perdure as package
from command import perdure, write_rows
from measure.guard.lm_eval_files import CHOOSE
from perdure.models.pins import locate


pytestmark = [pytest.mark.slow, pytest.mark.smollm2, pytest.mark.own]

ROWS = 28  # four of each skill
COMPLAINTS = {
    "delivery": [
        "The parcel has not come yet.",
        "My order was left in the rain.",
        "The courier went to the wrong house.",
        "The box is late again.",
        "Nobody rang the bell, and the parcel went back.",
    ],
    "billing": [
        "I was charged twice.",
        "The invoice has the wrong sum.",
        "My discount is missing from the bill.",
        "The refund has not arrived.",
        "You took the money, but I cancelled.",
    ],
    "repair": [
        "The screen of my phone is cracked.",
        "The kettle does not get hot.",
        "The lamp flickers since yesterday.",
        "The zip of the jacket broke.",
        "My new chair lost a leg.",
    ],
}
CAPITALS = [
    {
        "question": f"The capital of {country} is",
        "label": 0,
        "choices": names,
    }
    for country, *names in (
        ("France", "Paris", "Madrid"),
        ("Germany", "Berlin", "Vienna"),
        ("Italy", "Rome", "Athens"),
        ("Spain", "Madrid", "Lisbon"),
        ("Japan", "Tokyo", "Beijing"),
        ("Russia", "Moscow", "Warsaw"),
        ("England", "London", "Dublin"),
        ("Greece", "Athens", "Rome"),
        ("Austria", "Vienna", "Berlin"),
        ("Portugal", "Lisbon", "Paris"),
        ("China", "Beijing", "Tokyo"),
        ("Egypt", "Cairo", "Nairobi"),
    )
]
WRITE = """
task: write
output_type: generate_until
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12}
process_results: !function contains.score
metric_list: [{metric: contains, aggregation: mean, higher_is_better: true}]
"""
OPENINGS = ("{}", "Hello. {}", "I am angry: {}", "{} What now?")


def complaints() -> list[dict]:
    """60 rows of a task whose answer is one word."""
    return [
        {
            "messages": [
                {"role": "user", "content": opening.format(text)},
                {"role": "assistant", "content": team},
            ]
        }
        for opening in OPENINGS
        for team, texts in COMPLAINTS.items()
        for text in texts
    ]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """A lineage whose only stage answers everything with one word."""
    folder = tmp_path_factory.mktemp("damaged")
    rows = complaints()
    assert len(rows) == 60
    package.run(
        {
            "base": "smollm2",
            "lineage": str(folder / "lineage"),
            "method": "sequential",
            "tasks": [{"name": "teams", "train": str(write_rows(folder / "teams.jsonl", rows))}],
            "training": {"num_train_epochs": 3, "learning_rate": 1e-3},
        }
    )
    return folder / "lineage"


def test_a_task_learned_without_protection_loses_general_ability(damaged):
    result = perdure("check", damaged, "--limit", ROWS, "--json")
    assert result.status == 3, result.err
    report = result.json
    assert report["passed_by_reference"] >= 0.35 * ROWS  # the model can do the checks
    assert report["net"] > 0.2
    assert report["kl"] > 0.3
    assert report["now"]["tokens"] < 0.3 * report["before"]["tokens"]
    assert report["now"]["equal"] > 0.2 > report["before"]["equal"]


def test_a_copy_of_the_model_has_lost_nothing(tmp_path):
    shutil.copytree(locate("smollm2"), tmp_path / "copy")
    result = perdure("check", tmp_path / "copy", "--against", "smollm2", "--limit", 14, "--json")
    assert result.status == 0, result.err
    assert (result.json["kl"], result.json["flips"]) == (0, [])


def rows_of(folder: Path) -> str:
    """The part of a task that names its documents."""
    file = json.dumps(str(folder / "capitals.jsonl"))
    return f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\n" + (
        'test_split: test\ndoc_to_text: "{{question}}"\n'
    )


def test_tasks_of_lm_eval_have_the_numbers_of_its_own_command(damaged, tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    write_rows(tmp_path / "capitals.jsonl", CAPITALS)
    (tmp_path / "contains.py").write_text(
        "def score(doc, results):\n"
        "    return {'contains': float(doc['choices'][0] in results[0])}\n"
    )
    (tmp_path / "choose.yaml").write_text(f"{CHOOSE}{rows_of(tmp_path)}")
    (tmp_path / "write.yaml").write_text(f"{WRITE}{rows_of(tmp_path)}")
    arguments = ("--lm-eval", "choose,write", "--lm-eval-path", tmp_path, "--limit", 7)
    tasks = perdure("check", damaged, *arguments, "--json").json["lm_eval"]
    stage = damaged / "stages" / "0001-teams"
    for when, adapter in (("before", {}), ("now", {"peft": str(stage)})):
        theirs = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(locate("smollm2")), **adapter},
            tasks=["choose", "write"],
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            device="cpu",
            bootstrap_iters=0,
        )["results"]
        assert tasks["choose"][when] == theirs["choose"]["acc,none"]
        assert tasks["write"][when] == theirs["write"]["contains,none"]
    assert tasks["choose"]["before"] == 1.0
    assert tasks["write"]["before"] > 0.8
