"""The verdict at the head of the report: its words, its colours, and what stands beside scores."""

import json
from pathlib import Path

import pytest
from lineages import HOSTILE, ROWS, VERDICTS, change, judged, lineage

from perdure.data.rows import read_rows
from perdure.data.task import Split
from perdure.measure.predictions import Predictions
from perdure.reporting.making import report
from perdure.reporting.outcomes import Outcome, StageVerdict, stage_verdicts
from perdure.reporting.read import read
from perdure.reporting.samples import LONGEST, prompt_of, shortened


pytestmark = pytest.mark.own


def outcomes(verdict: StageVerdict) -> dict[str, tuple[str, str]]:
    return {outcome.task: (outcome.status, outcome.label) for outcome in verdict.outcomes}


def outcome_of(old: dict, **more) -> Outcome:
    """What became of an old task `red`, learned with 0.9, at a stage that learned `blue`."""
    first = judged("red", change(0.0, 0.9, rose=9))
    second = judged("blue", change(0.0, 1.0, rose=10), old={"red": old}, **more)
    _, verdicts = stage_verdicts([(1, first), (2, second)])
    return verdicts[1].outcomes[1]


def test_what_is_lost_within_noise_and_kept():
    verdict, stages = stage_verdicts(list(enumerate(VERDICTS, 1)))
    assert (verdict.status, verdict.headline) == ("lost", "Lost: blue, red")
    assert (verdict.lost, verdict.measured) == (("blue", "red"), 2)
    assert outcomes(stages[0]) == {"red": ("kept", "learned")}
    assert outcomes(stages[1]) == {"blue": ("kept", "learned"), "red": ("noise", "within noise")}
    assert outcomes(stages[2]) == {
        "green": ("kept", "learned"),
        "red": ("lost", "lost before"),
        "blue": ("lost", "lost"),
    }
    headlines = [stage.headline for stage in stages]
    assert headlines == [
        "the first task, so there is no old task to lose",
        "nothing lost beyond noise",
        "lost blue",
    ]
    assert (
        "4 of 10 test rows fell, 0 rose: within noise, p = 0.062" in stages[1].outcomes[1].evidence
    )


def test_a_task_that_a_later_stage_regains_is_not_lost():
    regained = judged("last", change(0.0, 1.0), old={"blue": change(0.6, 0.8, rose=2)})
    verdict, stages = stage_verdicts(list(enumerate((*VERDICTS, regained), 1)))
    assert verdict.headline == "Lost: red"
    assert outcomes(stages[3])["blue"] == ("kept", "kept")


def test_a_lost_task_stays_lost_while_it_is_below_its_first_score():
    still = judged("last", change(0.0, 1.0), old={"blue": change(0.6, 0.6)})
    _, stages = stage_verdicts(list(enumerate((*VERDICTS, still), 1)))
    assert outcomes(stages[3])["blue"] == ("lost", "lost before")
    assert "0.800 right after it was learned" in stages[3].outcomes[1].evidence


def test_the_words_fit_what_was_measured():
    collapsed = outcome_of(change(0.9, 0.9, collapse="all 10 answers are 'x'"))
    assert (collapsed.status, collapsed.label) == ("lost", "collapsed")
    assert collapsed.evidence == "all 10 answers are 'x'; no change in 10 test rows"
    few = outcome_of(change(0.9, 0.0, fell=3, rows=3))
    assert (few.status, few.label) == ("noise", "within noise")
    assert few.evidence == "3 of 3 test rows fell, 0 rose: so few rows cannot show a loss"
    holm = outcome_of(change(0.9, 0.4, fell=5))
    assert holm.evidence.endswith("p = 0.031, within noise for this many tasks")
    unknown = outcome_of(change(None, 0.4))
    assert (unknown.status, unknown.label) == ("unmeasured", "first measured")


def general(fell: int, **more) -> dict:
    """What a verdict has of general ability: 50 of 60 checks passed."""
    counts = {"rows": 60, "passed_by_reference": 50, "fell": fell, "rose": 1, "p": 0.01}
    result = {"reference": "stage 0", "judged": True, "lost": False, "lost_before": False}
    return {**result, **counts, "kl": 0.25, **more}


@pytest.mark.parametrize(
    ("measured", "status", "label"),
    [
        (general(12, lost=True), "lost", "lost"),
        (general(12, lost=True, lost_before=True), "lost", "lost before"),
        (general(2), "noise", "within noise"),
        (general(0, rose=0), "kept", "kept"),
        (general(0, judged=False), "unmeasured", "not measured"),
        ({"unmeasured": "the guard is switched off"}, "unmeasured", "not measured"),
    ],
)
def test_general_ability_stands_among_the_tasks(measured, status, label):
    stages = [(1, judged("red", change(0.0, 0.9, rose=9), general=measured))]
    verdict, (stage,) = stage_verdicts(stages)
    outcome = stage.outcomes[1]
    assert (outcome.task, outcome.status, outcome.label) == ("general ability", status, label)
    assert ("general ability" in verdict.headline) == (status == "lost")
    assert verdict.lost == ()
    if status == "lost":
        assert (outcome.before, outcome.after) == (50 / 60, 39 / 60)
        assert "against stage 0: 12 of the 50 checks that it passes now fail" in outcome.evidence
        assert "KL 0.250" in outcome.evidence


def test_general_ability_stays_lost_while_no_stage_measures_it():
    skipped = judged("blue", change(0.0, 1.0), general={"unmeasured": "the stage was so short"})
    task = {"metric": "acc", "before": 1.0, "now": 0.1, "documents": 60, "fell": 54, "rose": 0}
    tasks = {"arc": {**task, "p": 0.0, "lost": True, "lost_before": False}}
    measured = general(12, lost=True, checks={"lost": True, "lost_before": False}, lm_eval=tasks)
    lost = judged("red", change(0.0, 0.9, rose=9), general=measured)
    verdict, stages = stage_verdicts([(1, lost), (2, skipped)])
    assert verdict.status == "lost"
    assert verdict.headline == "Lost: general ability, general ability (lm-eval's arc)"
    assert outcomes(stages[1])["general ability"] == ("unmeasured", "not measured")
    regained = judged("green", change(0.0, 1.0), general=general(0, rose=0))
    verdict, _ = stage_verdicts([(1, lost), (2, skipped), (3, regained)])
    assert verdict.headline == "Lost: general ability (lm-eval's arc)"


def test_the_old_tasks_together_stay_lost_while_none_is_scored():
    first = judged("red", change(0.0, 0.9, rose=9))
    together = {**change(0.9, 0.5, fell=5), "lost": True, "lost_before": False}
    second = judged("blue", change(0.0, 1.0), old={"red": change(0.9, 0.5)}, together=together)
    unscored = judged("green", change(0.0, 1.0), unmeasured=["red", "blue"])
    verdict, _ = stage_verdicts([(1, first), (2, second), (3, unscored)])
    assert verdict.headline == "Lost: the old tasks together"
    scored = judged("last", change(0.0, 1.0), old={"red": change(0.5, 0.9), "blue": change(1, 1)})
    verdict, _ = stage_verdicts([(1, first), (2, second), (3, scored)])
    assert verdict.headline == "Nothing lost beyond noise"


def test_a_fall_on_few_rows_is_told_at_later_stages_too():
    first = judged("red", change(0.0, 1.0, rose=4, rows=4))
    fallen = judged("blue", change(0.0, 1.0), old={"red": change(1.0, 0.0, fell=4, rows=4)})
    still = judged("green", change(0.0, 1.0), old={"red": change(0.0, 0.0, rows=4)})
    unscored = judged("last", change(0.0, 1.0), unmeasured=["red"])
    stages = list(enumerate((first, fallen, still, unscored), 1))
    for count in (2, 3, 4):
        verdict, _ = stage_verdicts(stages[:count])
        assert verdict.status == "noise", count
        assert verdict.headline == "Nothing lost beyond noise, but too few rows to tell of red"
    red = stage_verdicts(stages[:3])[1][2].outcomes[1]
    assert (red.status, red.label) == ("noise", "below its first score")
    words = "1.000 right after it was learned; in this stage no change in 4 test rows"
    assert red.evidence == f"{words}: so few rows cannot show a loss"
    regained = judged("green", change(0.0, 1.0), old={"red": change(0.0, 1.0, rose=4, rows=4)})
    verdict, _ = stage_verdicts([*stages[:2], (3, regained)])
    assert verdict.headline == "Nothing lost beyond noise"


@pytest.mark.parametrize(("right", "told"), [(4, True), (5, False)])
def test_no_more_rows_can_have_fallen_than_were_right(right, told):
    first = judged("red", change(0.0, right / 20, rose=right, rows=20))
    fallen = judged("blue", change(0.0, 1.0), old={"red": change(0.0, 0.0, rows=20)})
    verdict, _ = stage_verdicts([(1, first), (2, fallen)])
    assert ("too few rows" in verdict.headline) == told


def test_what_is_not_measured():
    nothing = judged("red", None, unmeasured=["red"])
    verdict, stages = stage_verdicts([(1, nothing)])
    assert verdict.headline == "Not measured: no task has test rows"
    assert outcomes(stages[0]) == {"red": ("unmeasured", "not measured")}
    second = judged("blue", change(0.0, 1.0), unmeasured=["red"])
    verdict, stages = stage_verdicts([(1, nothing), (2, second)])
    assert verdict.status == "unmeasured"
    assert outcomes(stages[1])["red"] == ("unmeasured", "not measured")
    assert stage_verdicts([])[0].headline.startswith("Not judged")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Question {i}? {HOSTILE}", "completion": f" right {i}"} for i in range(10)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def answered(right: int) -> Predictions:
    """Ten answers, the first `right` of which are right."""
    texts = [f" right {i}" if i < right else "wrong" for i in range(10)]
    return Predictions(texts, [float(i < right) for i in range(10)])


def judged_lineage(folder: Path, name: str = "one", **more) -> None:
    answers = (
        {"red": answered(9)},
        {"red": answered(5), "blue": answered(8)},
        {"red": answered(4), "blue": answered(6), "green": answered(10)},
    )
    rows = Split(tuple(read_rows("test.jsonl")), {"path": "test.jsonl", "limit": None, "seed": 0})
    given = {"verdicts": VERDICTS, "answers": answers, "test": rows} | more
    lineage(folder / name, ROWS, **given)


def test_the_page_and_the_markdown_lead_with_the_verdict(place):
    judged_lineage(place)
    report(["one"], "report.html")
    page = " ".join(Path("report.html").read_text().split("<body>")[1].split())
    for text in (page, Path("report.md").read_text()):
        assert text.index("Lost: blue, red") < text.index("0.900")
        assert "lost before" in text
        assert "\u22120.200" in text
    assert page.index("Lost: blue, red") < page.index("Summary")
    assert '<span class="badge lost">lost</span>' in page
    assert '<span class="badge noise">within noise</span>' in page
    assert '<b class="fell">\u22120.400</b>' in page
    assert "<code>perdure revert one --to 2</code>" in page
    assert "<b>try</b>" not in page
    assert '<td class="lost">0.600<small>\u22120.200 lost</small></td>' in page
    assert "2 of 2" in page
    assert "one,red blue green,0,generate,tasks_lost,,,2" in Path("report.csv").read_text()


def test_sample_answers_show_the_rows_that_fell_first(place):
    judged_lineage(place)
    (run,) = read(["one"])
    red, _, green = run.samples
    assert [sample.row for sample in red.samples] == [5, 6, 7]
    assert (red.test_rows, red.fell, red.score) == (10, 5, 0.4)
    first = red.samples[0]
    assert first.prompt == f"Question 4? {HOSTILE}"
    assert (first.expected, first.first, first.newest) == ("right 4", "right 4", "wrong")
    assert (first.first_score, first.newest_score, first.fell) == (1.0, 0.0, True)
    assert [sample.row for sample in green.samples] == [1, 2, 3]
    report(["one"], "report.html")
    text = Path("report.html").read_text()
    assert "Question 4? &lt;script&gt;" in text
    assert HOSTILE not in text


@pytest.mark.parametrize("rows", ["changed", "gone", "python", "hub"])
def test_rows_that_cannot_be_read_leave_the_answers(place, rows):
    on_hub = Split((), {"hub": "owner/name", "split": "test", "limit": None, "seed": 0})
    judged_lineage(place, **{"python": {"test": None}, "hub": {"test": on_hub}}.get(rows, {}))
    if rows == "changed":
        (place / "test.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    elif rows == "gone":
        (place / "test.jsonl").unlink()
    (run,) = read(["one"])
    red = run.samples[0]
    assert (red.samples[0].prompt, red.samples[0].newest) == (None, "wrong")
    words = {"python": "Python", "hub": "hub"}.get(rows, "gone or have changed")
    assert words in red.missing
    report(["one"], "report.html")
    assert "The questions are not shown" in Path("report.html").read_text()


def test_texts_are_shortened_in_the_middle_and_messages_name_their_roles():
    text = "a" * LONGEST + "end"
    assert shortened(text).endswith("end")
    assert "[…]" in shortened(text)
    assert shortened("short") == "short"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    row = {"messages": [*messages, {"role": "assistant", "content": "Hello"}]}
    assert prompt_of(row) == "system: Be brief.\nuser: Hi"


def test_the_settings_are_on_the_page_with_the_defaults(place):
    judged_lineage(place, training={"learning_rate": 0.5})
    report(["one"], "report.html")
    text = Path("report.html").read_text()
    assert "<dt>training.learning_rate</dt><dd>0.5</dd>" in text
    assert "<dt>training.num_train_epochs</dt><dd>3</dd>" in text
    assert "<dt>adapter.peft_type</dt><dd>LORA</dd>" in text
