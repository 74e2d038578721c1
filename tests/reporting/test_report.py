"""The page, its Markdown and its CSV: the numbers are the matrix's, and text stays text."""

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from lineages import (
    BETTER,
    FORMULA,
    HOSTILE,
    ROWS,
    UNKNOWN,
    cell,
    entry,
    kif_state,
    lineage,
    timing,
)

import perdure as package
from command import perdure, refused, tree
from perdure.config import load_config
from perdure.lineage.lineage import Lineage
from perdure.measure.matrix import summary
from perdure.reporting.making import report
from perdure.reporting.read import read
from perdure.reporting.rerun import rerun
from perdure.reporting.spread import spread


pytestmark = pytest.mark.own


class Page(HTMLParser):
    """The tables of a page by their label, as rows of texts, and all its tags."""

    def __init__(self, path: Path):
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.inside = False
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "div" and attributes.get("role") == "region":
            self.rows = self.tables.setdefault(attributes["aria-label"] or "", [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path


def values(path: Path) -> dict[tuple[str, ...], str]:
    """The CSV's values by (lineage or method, measure, stage, task)."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    keys = [(line["lineage"] or line["method"], line["measure"]) for line in lines]
    at = [(line["stage"], line["task"]) for line in lines]
    return {(*k, *a): line["value"] for k, a, line in zip(keys, at, lines, strict=True)}


def test_the_numbers_are_those_of_the_matrix_in_all_three_files(place):
    matrix = lineage(place / "runs/one", ROWS).matrix()
    result = perdure("report", "runs")
    assert result.status == 0, result.err
    assert "report.html" in result.out
    assert "report.md, report.csv" in result.out
    numbers = summary(matrix)
    formatted = [f"{numbers[name]:.3f}" for name in numbers]
    page, text = Page(place / "report.html"), (place / "report.md").read_text()
    in_csv = values(place / "report.csv")
    row = page.tables["Summary by method"][1]
    signed = [f"{numbers[n]:+.3f}".replace("-", "−") for n in numbers]
    assert row == ["sequential", "not measured", "1", formatted[0], *signed[1:3], *formatted[3:]]
    assert f"| sequential | not measured | 1 | {' | '.join(formatted)} |" in text
    assert {n: float(in_csv["one", n, "", ""]) for n in numbers} == numbers
    cells = page.tables["Score matrix of one"]
    names = ["after stage", "base", "1 red", "2 blue", "3 green", "test rows (n)"]
    assert [line[0] for line in cells] == names
    assert cells[-1][1:] == ["10", "10", "10"]
    for i, scores in enumerate(matrix.rows):
        three = ["-" if s is None else f"{s:.3f}" for s in scores]
        assert cells[i + 1][1:] == three
        assert f"{cells[i + 1][0]} | {' | '.join(three)} |" in text
        for task, score in zip(matrix.tasks, scores, strict=True):
            assert in_csv["one", "score", str(i), task] == ("" if score is None else repr(score))
    costs = page.tables["Cost by lineage"]
    assert costs[1] == [
        "one",
        "sequential",
        "0",
        f"{numbers['overall']:.3f}",
        "61.5",
        "600",
        "240",
        "9",
        "6",
    ]
    assert f"| one | sequential | 0 | {' | '.join(costs[1][3:])} |" in text
    costs_in_csv = {"seconds": "61.5", "rows_forward": "600", "rows_back": "240", "rows_kept": "9"}
    assert {name: in_csv["one", name, "", ""] for name in costs_in_csv} == costs_in_csv
    assert "a-private-host" not in page.text + text


def test_seeds_of_one_order_have_a_mean_and_a_deviation_and_no_interval(place):
    for seed, rows in enumerate((ROWS, BETTER, ROWS)):
        lineage(place / f"runs/{seed}", rows, seed=seed)
    perdure("report", "runs")
    page = Page(place / "report.html")
    assert re.fullmatch(r"0\.\d{3} ± 0\.\d{3}", page.tables["Summary by method"][1][3])
    assert "hold only for these orders" in " ".join(page.text.split())
    in_csv = values(place / "report.csv")
    assert in_csv["sequential", "overall_low", "", ""] == ""
    assert float(in_csv["sequential", "overall_deviation", "", ""]) > 0


def test_several_orders_have_a_mean_a_deviation_and_an_interval(place):
    tasks = ("red", "blue", "green")
    stored = [
        lineage(place / f"runs/{n}", rows, tasks=(*tasks[n:], *tasks[:n]))
        for n, rows in enumerate((ROWS, BETTER, ROWS))
    ]
    perdure("report", "runs")
    op = spread([summary(one.matrix())["overall"] for one in stored], range(3))
    three = [f"{v:.3f}" for v in (op.mean, op.deviation, op.low, op.high) if v is not None]
    assert len(three) == 4
    row = Page(place / "report.html").tables["Summary by method"][1]
    assert row[2:4] == ["3", "{} ± {} [{}, {}]".format(*three)]
    assert "{} ± {} \\[{}, {}\\]".format(*three) in (place / "report.md").read_text()
    in_csv = values(place / "report.csv")
    assert float(in_csv["sequential", "overall_low", "", ""]) == op.low
    assert float(in_csv["sequential", "overall_deviation", "", ""]) == op.deviation


def test_the_interval_is_students():
    three_orders = spread([0.2, 0.4, 0.9], ["a", "b", "c"])
    assert three_orders.mean == pytest.approx(0.5)
    assert three_orders.deviation == pytest.approx(0.36055513)
    assert three_orders.high == pytest.approx(0.5 + 4.30265273 * 0.36055513 / 3**0.5)
    assert three_orders.low == pytest.approx(0.5 - 4.30265273 * 0.36055513 / 3**0.5)
    one_order = spread([0.2, 0.4, 0.9])
    assert (one_order.mean, one_order.deviation) == (three_orders.mean, three_orders.deviation)
    assert (one_order.low, one_order.high) == (None, None)
    seeds = spread([0.1, 0.3, 0.4, 0.9], ["a", "a", "b", "c"])  # two seeds of a, averaged
    assert (seeds.mean, seeds.low) == (pytest.approx(0.5), pytest.approx(three_orders.low))
    assert spread([0.2]) == spread([0.2]).__class__(1, 0.2)
    assert spread([0.2, None]).mean is None
    assert spread([]).mean is None


def test_unknown_cells_are_dashes_and_never_numbers(place):
    lineage(place / "runs/a", UNKNOWN)
    lineage(place / "runs/b", ROWS, method="replay")
    assert perdure("report", "runs").status == 0
    page = Page(place / "report.html")
    rows = {row[0]: row[3:] for row in page.tables["Summary by method"][1:]}
    assert rows["sequential"][:2] == ["-", "-"]
    assert rows["replay"][0] == "0.650"
    assert page.tables["Score matrix of a"][4] == ["3 green", "-", "0.600", "0.950"]
    assert sum("unknown" in (attributes.get("class") or "") for _, attributes in page.tags) == 4
    assert values(place / "report.csv")["a", "overall", "", ""] == ""


def test_an_empty_lineage_is_said_to_be_empty(place):
    lineage(place / "runs/new", ROWS[:1])
    result = perdure("report", "runs", "--json")
    assert result.status == 0, result.err
    assert result.json["lineages"][0]["overall"] is None
    page = Page(place / "report.html")
    assert "Nothing learned yet" in page.text
    assert "Summary by method" not in page.tables
    assert "new: nothing learned yet" in (place / "report.md").read_text()


def test_what_cannot_be_compared_stands_in_parts_of_its_own(place):
    lineage(place / "runs/a", ROWS)
    lineage(place / "runs/b", BETTER, mode="options")
    perdure("report", "runs")
    text = (place / "report.html").read_text()
    assert "they are shown in\n2 parts" in text
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Part 1: 3 tasks, generate",
        "Part 2: 3 tasks, options",
    ]
    assert text.count('aria-label="Summary by method"') == 2


def test_hostile_names_stay_text_everywhere(place):
    names = (HOSTILE, FORMULA, "|a|# b `c`")  # a ledger with a line break in a name is refused
    lineage(place / "runs" / "=x&<b>", ROWS, tasks=names)
    lineage(place / "runs" / "y", BETTER, tasks=names, method="replay")
    assert perdure("report", "runs").status == 0
    page = Page(place / "report.html")
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "b<", "img", "iframe"}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert page.tables["Score matrix of =x&<b>"][0] == ["after stage", *map(clean, names)]
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert f"Score of {HOSTILE} over the stages" in labels
    with (place / "report.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert f"'{FORMULA}" in cells
    assert HOSTILE in cells
    assert not [c for c in cells if c[:1] in tuple("=+@") or re.match(r"-[^0-9.]", c)]
    text = (place / "report.md").read_text()
    assert "<script>" not in text
    for line in text.splitlines():
        if line.startswith("| after stage"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 5


def clean(words: str) -> str:
    return " ".join(words.split())


def test_recurrent_kif_shows_where_importance_sits_and_how_it_fused(place):
    lineage(place / "runs/a", ROWS, method="recurrent_kif", state=kif_state())
    perdure("report", "runs/a")
    page = Page(place / "report.html")
    assert page.tables["Fusion cases of a"] == [
        ["task", "rounds", "both", "new only", "old only", "neither"],
        ["blue", "2", "20.0 %", "10.0 %", "20.0 %", "50.0 %"],
        ["green", "2", "20.0 %", "10.0 %", "20.0 %", "50.0 %"],
    ]
    heat = re.search(r"<svg[^>]*to the new task, while green was learned.*?</svg>", page.text)
    assert heat
    assert re.findall(r"<text[^>]*number[^>]*>(\d+)<", heat[0]) == ["25", "25", "50", "50"]


def test_a_lineage_of_a_release_that_kept_no_counts_says_so(place):
    state = {k: v for k, v in kif_state().items() if "important" not in k}
    lineage(place / "runs/a", ROWS, method="recurrent_kif", state=state)
    perdure("report", "runs")
    assert "did not store the counts" in (place / "report.html").read_text()


def test_the_page_says_how_to_run_a_lineage_again(place):
    settings = {"method": "replay", "seed": 4, "memory": {"ratio": 0.1}}
    stored = lineage(place / "runs/a", ROWS, tasks=("topic", "mood", "amount"), **settings)
    ((run,), files) = package.report("runs/a", out="mine.html")
    assert [path.name for path in files] == ["mine.html", "mine.md", "mine.csv"]
    again = load_config(yaml.safe_load(run.rerun.settings))
    assert again.to_dict() == stored.config.to_dict()
    assert run.rerun.commands == ("perdure run again.yaml lineage=again",)


def test_a_lineage_of_single_tasks_is_made_again_by_init_and_learn(place):
    stored = lineage(place / "runs/a", ROWS, tasks=("a b", "blue", "green"))
    stored.config.tasks = None
    first, second = stored.ledger[1]["task"], stored.ledger[2]["task"]
    first["train"]["source"] = {"path": "../../my rows.jsonl"}
    first["test"]["source"] = {"hub": "me/rows", "split": "test"}
    first |= {"metric": "rouge_l", "options": ["x"], "training": {"learning_rate": 0.001}}
    second["train"]["source"] = {"path": "../../blue.jsonl"}
    del second["test"]
    assert rerun(stored).commands == (
        "perdure init again --config again.yaml",
        "perdure learn again 'a b' 'my rows.jsonl' training.learning_rate=0.001 "
        "--test hub:me/rows:test --metric rouge_l --option x",
        "perdure learn again blue blue.jsonl",
        "# green: its rows were passed in Python; pass them to perdure.learn",
    )


def test_tasks_that_are_not_the_streams_are_learned_one_by_one(place):
    stored = lineage(place / "runs/a", ROWS, tasks=("topic", "own", "amount"))
    assert rerun(stored).commands == (
        "perdure init again --config again.yaml",
        "# topic: its rows are those of stream generated, which only `perdure run` reads",
        "# own: its rows were passed in Python; pass them to perdure.learn",
        "# amount: its rows are those of stream generated, which only `perdure run` reads",
    )


@pytest.mark.parametrize(
    ("change", "as_run"),
    [
        ({}, True),
        ({"train": "rows/blue.jsonl"}, True),  # relative to where it was run
        ({"train": {"path": "rows/blue.jsonl"}}, True),
        ({"train": "blue.jsonl", "metric": "exact_match"}, True),
        ({"train": "other/blue.jsonl"}, False),
        ({"train": {"path": "rows/blue.jsonl", "prompt": "{a}"}}, False),
        ({"name": "red"}, False),
        ({"test": "rows/blue-test.jsonl"}, False),
        ({"metric": "rouge_l"}, False),
        ({"training": {"learning_rate": 0.1}}, False),
        ({"hold_out": 0.1}, False),
        ({"train": "hub:me/blue"}, False),
    ],
)
def test_a_stream_is_run_again_if_its_tasks_were_learned_from_its_rows(place, change, as_run):
    stored = lineage(place / "runs/a", ((0.1,), (0.9,)), tasks=("blue",))
    blue = stored.ledger[1]["task"]
    blue["train"]["source"] = {"path": "../../rows/blue.jsonl", "limit": None, "seed": 0}
    del blue["test"]
    stored.config.tasks = [{"name": "blue", "train": str(place / "rows/blue.jsonl")} | change]
    command = rerun(stored).commands[0]
    assert command.startswith("perdure run" if as_run else "perdure init")


def test_a_report_may_be_made_again_and_is_the_same_bytes(place):
    lineage(place / "runs/a", ROWS)
    lineage(place / "runs/b", BETTER, method="replay")
    perdure("report", "runs")
    before = tree(place)
    assert perdure("report", "runs").status == 0
    assert tree(place) == before


def test_what_was_measured_on_dev_rows_is_drawn(place):
    losses = ((8, 2.0), (16, 1.25), (24, None))
    dev = {
        "rows": 7,
        "metric": "loss",
        "curve": [{"step": step, "loss": loss} for step, loss in losses],
        "best": 16,
        "weights_of": 16,
        "stopped": True,
    }
    lineage(place / "runs/a", ROWS, dev=dev)
    assert [curve.points for curve in read(["runs"])[0].dev] == [losses] * (len(ROWS) - 1)
    report(["runs"], "report.html")
    text = Path("report.html").read_text(encoding="utf-8")
    assert "Dev loss while red was learned" in text
    assert "1.25 at 16" in text
    assert "loss on 7 rows; weights of step 16; stopped early: 24" in text
    lineage(place / "others/b", ROWS)
    report(["others"], "others.html")
    assert "Dev rows" not in Path("others.html").read_text(encoding="utf-8")


def test_what_is_no_report_is_not_overwritten(place):
    lineage(place / "runs/a", ROWS)
    for name in ("report.html", "report.md", "report.csv"):
        (place / name).write_text("mine")
        refused(place, "report", "runs", names=(name, "not a report", "--out"))
        (place / name).unlink()
    (place / "report.html").mkdir()
    refused(place, "report", "runs", names=("report.html", "--out"))


def test_bad_input_is_told_in_one_line(place):
    lineage(place / "runs/a", ROWS)
    (place / "other").mkdir()
    refused(place, "report", "other", names=("other", "no lineage in it"))
    refused(place, "report", "run", names=("run", "no such folder", "'runs'"))
    refused(place, "report", "runs", "--out", "page.pdf", names=("page.pdf", ".html"))
    refused(place, "report", "runs", "--out", "no/page.html", names=("no/page.html", "folder"))
    assert Lineage(place / "runs/a").head == 3


def test_a_stage_that_the_gate_refused_is_shown_with_its_reasons(tmp_path):
    writer = lineage(tmp_path / "run", ROWS)
    line = entry(writer.config, writer.head, 4, "black")
    built = writer.path / ".work" / "stage"
    built.mkdir(parents=True)
    (built / "scores.json").write_text(json.dumps({"after": {}, "before": {}, "base": {}}))
    reasons = ["red fell from 0.9 to 0.1 (gate.forgetting is 0.1)", "KL <b>"]
    writer.refuse(built, {**line, "scores": {}}, reasons, "0" * 64)

    report([tmp_path / "run"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    shown = "red fell from 0.9 to 0.1 (gate.forgetting is 0.1); KL &lt;b&gt;"
    assert page.count(shown) == 2  # beside the verdict, and in the ledger
    assert "after stage 3" in page
    assert "; the gate refused black" in page
    assert "3 (reverted)" not in page  # neither the refused stage nor the one before it
    (run,) = read([tmp_path / "run"])
    assert [stage.task for stage in run.stages] == ["red", "blue", "green"]
    assert "after stage | refused task | why" in (tmp_path / "page.md").read_text()


def test_stages_keep_their_numbers_after_a_revert_and_what_took_one_out_is_named(tmp_path):
    writer = lineage(tmp_path / "run", ROWS)
    writer.append({"stage": 1, "verb": "revert", "parent": 3})
    of_merging = {"verb": "merge", "method": "merged", "checkpoint": {}, "weight": None}
    of_merging |= {"rule": {"average": {"exact": False}}, "history": []}
    for number, more in ((4, {}), (5, {"undone": 4})):
        built = writer.path / ".work" / "stage"
        built.mkdir(parents=True)
        scores = {"after": {"red": cell(0.5, "generate")}, "before": {}, "base": {}}
        (built / "scores.json").write_text(json.dumps(scores))
        line = entry(writer.config, writer.head, number, "black") | of_merging | more
        writer.commit(built, line, timing(number))

    assert perdure("report", tmp_path / "run", "--out", tmp_path / "page.html").status == 0
    page = Page(tmp_path / "page.html")
    names = [line[0] for line in page.tables["Score matrix of run"]]
    assert names[:5] == ["after stage", "base", "1 red", "4", "5"]
    assert "| 5 | 0.500 |" in (tmp_path / "page.md").read_text()
    in_csv = values(tmp_path / "page.csv")
    assert in_csv["run", "score", "5", "red"] == "0.5"
    ledger = next(table for name, table in page.tables.items() if "edger" in name)
    assert [line[:2] for line in ledger[-2:]] == [["4", "merge"], ["5", "undo 4"]]
    (told,) = [line for line in perdure("log", tmp_path / "run").out.splitlines() if "undo" in line]
    assert told.split()[:3] == ["5", "undo", "4"]
    ticks = re.findall(r'class="tick middle">(\d+)</text>', page.text)  # below each figure
    assert ticks == ["0", "1", "4", "5"]
