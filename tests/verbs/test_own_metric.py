"""A metric of one's own: a function of a module beside the rows, recorded by its source's hash."""

import hashlib
import json
from itertools import count
from pathlib import Path

import pytest

from command import perdure, refused
from perdure import PerdureError
from perdure.api import evaluate, learn, run
from perdure.lineage.lineage import Lineage
from perdure.measure.custom_metric import metric_name


pytestmark = [pytest.mark.own, pytest.mark.parametrize("kind", ["causal"])]

LENGTH = """
def closeness(prediction, reference):
    return {value}
class Group:
    @staticmethod
    def half(prediction, reference):
        return 0.5
"""
numbers = count()


@pytest.fixture
def module(place) -> str:
    """A new module beside the lineage, by a name that was not imported before."""
    name = f"own_metric_{next(numbers)}"
    write(name, "float(prediction == reference)")
    return name


def write(name: str, value: str) -> None:
    Path(f"{name}.py").write_text(LENGTH.format(value=value))


def add(metric, name: str = "more", say=lambda line: None):
    files = {split: f"colour-{split}.jsonl" for split in ("train", "test")}
    return learn("lineage", name, **files, metric=metric, say=say)


def test_a_task_is_scored_by_it_and_the_ledger_has_the_hash_of_its_source(module):
    entry = add(f"{module}:Group.half")
    assert entry["task"]["metric"] == f"{module}:Group.half"
    source = hashlib.sha256(Path(f"{module}.py").read_bytes()).hexdigest()
    assert entry["task"]["metric_source"] == source
    assert "metric_source" not in Lineage("lineage").at(1)["task"]
    assert entry["scores"]["more"] == 0.5
    result = perdure("evaluate", "lineage", "--task", "more", "--json").json
    assert (result["more"]["score"], result["more"]["metric"]) == (0.5, f"{module}:Group.half")
    more = ("colour-train.jsonl", "--test", "colour-test.jsonl", "--metric", f"{module}:Group.half")
    assert perdure("learn", "lineage", "third", *more).status == 0
    assert Lineage("lineage").stages[-1]["scores"]["more"] == 0.5


def test_a_python_function_is_recorded_by_its_name(place, tmp_path):
    from statistics import harmonic_mean

    assert metric_name("rouge_l") == "rouge_l"
    assert metric_name(harmonic_mean) == "statistics:harmonic_mean"  # type: ignore[arg-type]
    with pytest.raises(PerdureError, match=r"cannot be imported by its name.*of its own"):
        add(lambda prediction, reference: 1.0)
    settings = Lineage("lineage").config.to_dict() | {"lineage": "new"}
    tasks = [{**task, "metric": half} for task in settings["tasks"][:1]]
    lineage = run({**settings, "tasks": tasks})
    assert lineage.config.tasks[0]["metric"] == f"{__name__}:half"  # type: ignore[index]
    assert lineage.stages[0]["scores"] == {"colour": 0.5}


def half(prediction: str, reference: str) -> float:
    return 0.5


def test_scores_of_a_metric_that_has_changed_are_not_mixed(module):
    metric = f"{module}:closeness"
    add(metric)
    write(module, "0.25 + 0.0")
    lines: list[str] = []
    entry = add("exact_match", "third", lines.append)
    since = "has changed since the task was learned"
    assert f"warning: more is not scored: metric {metric} {since}" in lines
    assert "more" in entry["scores"]
    assert entry["scores"]["more"] is None
    lines.clear()
    assert evaluate("lineage", tasks=["more"], say=lines.append)["more"]["score"] == 0.25
    assert lines == [f"warning: more is scored by a metric, {metric}, that {since}"]
    Path(f"{module}.py").unlink()
    result = perdure("evaluate", "lineage", "--task", "more")
    assert result.status == 0
    assert "more is not scored" in result.err
    assert "has no source file" in result.err
    assert perdure("show", "lineage", "--flips").status == 0  # needs the rows, not the metric
    write(module, "float(prediction == reference)")
    lines.clear()
    assert add("exact_match", "fourth", lines.append)["scores"]["more"] is not None
    assert not [line for line in lines if "not scored" in line]


def test_a_metric_that_only_the_ledger_names_is_not_imported(module, monkeypatch, tmp_path):
    """As in a lineage that somebody else has made; its folder may even bring the module."""
    metric = f"{module}:Group.half"
    add(metric)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of-another-user"))
    with Path(f"{module}.py").open("a") as file:
        file.write("open('ran', 'w').close()\n")
    for arguments in (("evaluate", "lineage"), ("report", "lineage", "--out", "page.html")):
        result = perdure(*arguments)
        assert result.status == 0, result.err
        assert not Path("ran").exists()
    lines: list[str] = []
    assert evaluate("lineage", tasks=["more"], say=lines.append)["more"]["score"] is None
    [line] = lines
    assert f"metric {metric} is code that only the ledger names" in line
    assert f"PERDURE_METRICS={metric}" in line
    monkeypatch.setenv("PERDURE_METRICS", f"other:f,{metric}")
    assert evaluate("lineage", tasks=["more"])["more"]["score"] == 0.5
    assert Path("ran").exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("__import__('random').random()", ("gave 0.", "and then 0.", "nothing but the two texts")),
        ("1.5", ("returned 1.5 for the answer", "a number from 0 to 1")),
        ("float('nan')", ("returned nan", "a number from 0 to 1")),
        ("None", ("failed on the answer", "TypeError", "a number from 0 to 1")),
        ("1 / len(prediction)", ("failed on the answer ''", "ZeroDivisionError")),
    ],
)
def test_a_metric_that_cannot_score_is_refused_before_anything_is_learned(module, value, words):
    write(module, value)
    more = ("colour-train.jsonl", "--test", "colour-test.jsonl", "--metric", f"{module}:closeness")
    here = Path.cwd()
    perdure("learn", "lineage", "more", *more)  # imports the module, which leaves its cache
    refused(here, "learn", "lineage", "more", *more, names=(f"'{module}:closeness'", *words))


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("nowhere:f", ("module 'nowhere' cannot be imported", "there is no such module")),
        ("json:f", ("module json has no function 'f'", "MODULE:FUNCTION")),
        ("math:fabs", ("module 'math' has no source file",)),
        (":f", ("cannot be imported",)),
        ("broken_metric:f", ("'broken_metric' cannot be imported", "SyntaxError")),
        ("rougel", ("unknown metric 'rougel'", "did you mean 'rouge_l'?")),
        ("bleurt-20", ("unknown metric 'bleurt-20'", "MODULE:FUNCTION", "token_f1")),
    ],
)
def test_a_metric_that_is_not_there(place, metric, words):
    Path("broken_metric.py").write_text("def f(\n")
    more = ("colour-train.jsonl", "--test", "colour-test.jsonl", "--metric", metric)
    refused(place, "learn", "lineage", "more", *more, names=words)


def test_json_fields_needs_references_in_json(place):
    rows = [{"prompt": "the cat", "completion": text} for text in ('"red"', "red")]
    Path("mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = ("colour-train.jsonl", "--test", "mixed.jsonl", "--metric", "json_fields")
    words = ("more test, row 2: its answer is not JSON", "choose another metric")
    refused(place, "learn", "lineage", "more", *more, names=words)
