"""What a tracker holds after a stream, read back from TensorBoard's own files."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from perdure import api
from perdure.config import Config, Scoring, load_config
from perdure.data.task import Split, Task
from perdure.errors import PerdureError
from perdure.lineage.files import hash_folder
from perdure.lineage.lineage import Lineage
from perdure.measure.matrix import ScoreMatrix, summary
from perdure.methods import make
from perdure.train import arguments, stage, tracking
from perdure.train.arguments import check_training, tracker_names, training_arguments
from perdure.train.stage import StagePlan, learn_stage
from perdure.train.tracking import Tracked, steps_before
from tiny import save_tiny, tiny_rows
from train.engine import Stop, Stopped, tiny_base


TASKS = ("colour", "animal")
STEPS = 6  # 48 rows in batches of 8, one epoch
TRAINING = {"num_train_epochs": 1, "learning_rate": 1e-2, "logging_steps": 4}
REPORTED = {**TRAINING, "report_to": "tensorboard", "run_name": "first"}
DURING = ("loss", "learning_rate", "grad_norm")


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar of a TensorBoard run as (step, value)."""
    events = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def task(name: str) -> Task:
    return Task(name, train=Split(tiny_rows(name, 48)), test=Split(tiny_rows(name, 8, 1)))


def learn_both(folder: Path, training: dict, callbacks=()) -> ScoreMatrix:
    """Two stages one after another and R, with what the verbs tell the trackers."""
    lengths = {"max_length": 64, "max_completion_length": 4}
    config = Config(training=training, scoring=Scoring(forward=False), **lengths)
    base, rows, steps = tiny_base("causal"), [(None, None)], 0
    with Tracked(training, folder) as tracked:
        for i, name in enumerate(TASKS, start=1):
            learned = {t: task(t) for t in TASKS[:i]}
            all_callbacks = [*callbacks, tracked]
            plan = StagePlan(
                stage=i,
                task=name,
                learn=[learned[name]],
                score=learned,
                memory={},
                config=config,
                methods=make("sequential"),
                arguments=training_arguments(training, folder, 0, config.checkpoint_every),
                callbacks=all_callbacks,
            )
            work = folder / "work" / str(i)
            work.mkdir(parents=True)
            tracked.begin(name, i, len(TASKS), steps)
            learn_stage(base, plan, work, folder / f"stage-{i}", lambda line: None)
            steps += STEPS
            cells = json.loads((folder / f"stage-{i}" / "scores.json").read_text())["after"]
            scores = {t: cell["score"] for t, cell in cells.items()}
            rows.append((scores["colour"], scores.get("animal")))
            score_rows = tuple(row[:i] for row in rows)
            matrix = ScoreMatrix(TASKS[:i], tuple(range(1, i + 1)), score_rows)
            tracked.stage_done(name, scores, matrix)
    return matrix


def test_names_steps_and_values_of_two_tasks(tmp_path):
    matrix = learn_both(tmp_path, REPORTED)
    scalars = read(tmp_path / "logs" / "first")
    during = {f"task/{name}/{key}" for name in TASKS for key in DURING}
    after = {f"task/{name}/score" for name in TASKS}
    # without scores of the base there is no forward transfer
    metrics = ("overall", "backward_transfer", "forgetting", "learning_accuracy", "stage")
    assert set(scalars) == during | after | {f"continual/{name}" for name in metrics}
    for key in DURING:
        assert [step for step, _ in scalars[f"task/colour/{key}"]] == [4, 6]
        assert [step for step, _ in scalars[f"task/animal/{key}"]] == [10, 12]
    assert scalars["task/animal/learning_rate"][0][1] > scalars["task/animal/learning_rate"][1][1]
    assert scalars["task/colour/score"] == approx([(6, matrix.rows[1][0]), (12, matrix.rows[2][0])])
    assert scalars["task/animal/score"] == approx([(12, matrix.rows[2][1])])
    assert scalars["continual/stage"] == [(6, 1.0), (12, 2.0)]
    for name in ("backward_transfer", "forgetting"):  # nothing to forget after the first stage
        assert scalars[f"continual/{name}"] == approx([(12, summary(matrix)[name])])
    assert scalars["continual/overall"][1] == approx((12, summary(matrix)["overall"]))


def approx(expected):
    """TensorBoard keeps 32 bits of a number."""
    if isinstance(expected, list):
        return [approx(point) for point in expected]
    return (expected[0], pytest.approx(expected[1], rel=1e-6))


def test_trackers_change_no_byte_of_a_stage(tmp_path):
    for name, training in (("plain", TRAINING), ("tracked", REPORTED)):
        learn_both(tmp_path / name, training)
    for folder in ("stage-1", "stage-2"):
        plain, tracked = (hash_folder(tmp_path / name / folder) for name in ("plain", "tracked"))
        assert "method.safetensors" in plain
        assert any(file.startswith("adapter_model") for file in plain)
        assert plain == tracked
    assert not (tmp_path / "plain" / "logs").exists()


def test_the_trainer_itself_reports_to_nobody(tmp_path):
    args = training_arguments(REPORTED, tmp_path, 0, 0)
    assert args.report_to == []
    assert (args.logging_strategy, args.logging_steps) == ("steps", 4)
    assert training_arguments({"report_to": "tensorboard"}, tmp_path, 0, 0).logging_steps == 10
    assert training_arguments({}, tmp_path, 0, 0).logging_strategy == "no"


def test_the_names_that_report_to_takes(monkeypatch):
    monkeypatch.setattr(arguments, "get_available_trackers", lambda: ["tensorboard", "wandb"])
    for none in (None, "none", [], ["none"]):
        assert tracker_names(none) == []
    assert tracker_names("wandb") == ["wandb"]
    assert tracker_names(["wandb", "tensorboard", "wandb"]) == ["wandb", "tensorboard"]
    assert tracker_names("all") == ["tensorboard", "wandb"]


@pytest.mark.parametrize(
    ("report_to", "line"),
    [
        ("tensorbord", "unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        (["wandb", "zzz"], "unknown tracker 'zzz'; valid: aim, all, "),
        (["mlflow"], "mlflow is not installed; pip install mlflow, or leave it out"),
    ],
)
def test_a_tracker_that_is_not_there_is_told_in_one_line(report_to, line, monkeypatch):
    monkeypatch.setattr(arguments, "get_available_trackers", lambda: ["tensorboard", "wandb"])
    with pytest.raises(PerdureError) as caught:
        check_training({"report_to": report_to})
    assert str(caught.value).startswith(f"training: report_to: {line}")
    assert "\n" not in str(caught.value)


def test_a_tracker_that_is_no_name_is_told_in_one_line():
    with pytest.raises(
        PerdureError, match=r"^training: report_to takes null or str or list, got 3$"
    ):
        check_training({"report_to": 3})


def test_steps_before_a_stage():
    times = {"1": {"steps": 5}, "2": {"seconds": {}}, "3": {"steps": 7}, "4": {"steps": 9}}
    assert steps_before({}, 1) == 0
    assert steps_before(times, 4) == 12  # a commit that was stopped may have left its own entry


START = SimpleNamespace(global_step=0, max_steps=9)


class Kept:
    """Stands for a tracker of a service: keeps how it was made."""

    name, requires_logging_directory, runs, error = "wandb", False, [], ""

    def __init__(self, project, **settings):
        self.runs.append({"project": project, **settings, "state": "new"})

    def start(self):
        if self.error:
            raise RuntimeError(self.error)
        self.runs[-1]["state"] = "started"

    def log(self, values, step):
        self.runs[-1][step] = values

    def finish(self):
        self.runs[-1]["state"] = "finished"


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(Kept, "runs", [])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Kept)
    monkeypatch.setattr(arguments, "get_available_trackers", lambda: ["wandb"])
    return Kept


def test_every_call_goes_on_with_the_run_of_the_lineage(kept, tmp_path):
    for number in (1, 2):
        with Tracked({"report_to": "all"}, tmp_path) as tracked:
            assert len(kept.runs) == number - 1  # opens with the training
            tracked.begin("re views@2", number, None, 10 * number)
            tracked.on_train_begin(None, START, None)
            state = SimpleNamespace(global_step=3, max_steps=9)
            tracked.on_step_end(None, state, None)
            tracked.on_log(None, state, None, logs={"loss": 0.5, "epoch": 1.0})
            tracked.on_log(None, state, None, logs={"train_loss": 0.5})
            assert kept.runs[-1][10 * number + 3] == {"task/re_views_2/loss": 0.5}
    first, second = kept.runs
    assert first["project"] == "perdure"
    assert first["name"] == tmp_path.name
    assert first["state"] == "finished"
    assert (first["id"], first["resume"]) == (second["id"], "allow")


def test_a_tracker_that_does_not_start_is_told_in_one_line(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "error", "no key\nlog in")
    with (
        pytest.raises(PerdureError, match="report_to: wandb did not start: no key log in"),
        Tracked({"report_to": "wandb"}, tmp_path) as tracked,
    ):
        tracked.on_train_begin(None, START, None)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    save_tiny("causal", folder / "base")
    tasks = []
    for name in TASKS:
        for split, n, seed in (("train", 48, 0), ("test", 8, 1)):
            lines = [json.dumps(row) + "\n" for row in tiny_rows(name, n, seed)]
            (folder / f"{name}-{split}.jsonl").write_text("".join(lines))
        files = {split: str(folder / f"{name}-{split}.jsonl") for split in ("train", "test")}
        tasks.append({"name": name, **files})
    return {
        "base": str(folder / "base"),
        "tasks": tasks,
        "training": REPORTED,
        "max_completion_length": 4,
        "checkpoint_every": 2,
        "threads": 1,
    }


def run(setting, path, callbacks=()) -> Lineage:
    return api.run(load_config({**setting, "lineage": str(path)}), callbacks=callbacks)


def test_a_run_stopped_inside_a_task_goes_on_with_its_steps(setting, tmp_path):
    with pytest.raises(Stopped):
        run(setting, tmp_path / "run", [Stop(5, task=2)])
    assert [s for s, _ in read(tmp_path / "run" / "logs" / "first")["task/animal/loss"]] == [10]
    lineage = run(setting, tmp_path / "run")
    scalars = read(tmp_path / "run" / "logs" / "first")
    # step 10 was in the checkpoint, so it is not learned again
    assert [step for step, _ in scalars["task/animal/loss"]] == [10, 12]
    assert [step for step, _ in scalars["task/colour/score"]] == [6, 12]
    assert [value for _, value in scalars["task/colour/score"]] == pytest.approx(
        [row[0] for row in lineage.matrix().rows[1:]]
    )
    assert scalars["continual/forward_transfer"] == approx(
        [(12, summary(lineage.matrix())["forward_transfer"])]
    )
    before = hash_folder(tmp_path / "run")
    run(setting, tmp_path / "run")
    assert hash_folder(tmp_path / "run") == before


def test_a_run_stopped_while_scoring_has_its_scores_at_the_end_of_training(
    setting, tmp_path, monkeypatch
):
    def dying(*args):
        raise Stopped

    monkeypatch.setattr(stage, "save_weights", dying)
    with pytest.raises(Stopped):
        run(setting, tmp_path / "run")
    monkeypatch.undo()
    run(setting, tmp_path / "run")
    scalars = read(tmp_path / "run" / "logs" / "first")
    assert [step for step, _ in scalars["continual/stage"]] == [6, 12]


def test_a_tracked_lineage_differs_by_its_settings_only(setting, tmp_path):
    for name, training in (("plain", TRAINING), ("tracked", REPORTED)):
        run({**setting, "training": training}, tmp_path / name)
    plain, tracked = (hash_folder(tmp_path / name) for name in ("plain", "tracked"))
    tracked = {name: digest for name, digest in tracked.items() if not name.startswith("logs/")}
    changed = {name for name in tracked if plain[name] != tracked[name]}
    assert plain.keys() == tracked.keys()
    assert changed <= {"lineage.yaml", "ledger.jsonl", "newest.json", "timings.json"}


@pytest.mark.own
def test_logs_lead_nowhere_else(tmp_path):
    """A lineage may be somebody else's; the links that a tracker makes stay inside."""
    (tmp_path / "logs" / "first").mkdir(parents=True)
    (tmp_path / "logs" / "latest").symlink_to("first")
    tracked = Tracked({"report_to": "tensorboard"}, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "logs" / tmp_path.name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PerdureError, match=f"logs/{tmp_path.name}: is a symbolic link"):
        tracked._open()
    assert not list((tmp_path / "elsewhere").iterdir())
