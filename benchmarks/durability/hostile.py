"""What a stranger's lineage, base or comparison can do to the one who uses it.

Each attack is planted in a copy of a small lineage, and a verb is run on it. Beside the copy lies a
folder `outside`, which no verb has a reason to read or change. The table shows what each verb did:
`refused` (one line, status 2), `harmless` (it worked, and reached nothing outside), or how it
failed: `REACHED` (something outside was changed), `LEAKED` (something outside was uploaded), `RAN`
(code of the stranger), `OBEYED` (a terminal would have), `TRACEBACK` or `HUNG`.

    python benchmarks/durability/hostile.py [FOLDER] [--only NAME] [--json]

FOLDER is a new folder for the copies; without it they are made in a temporary one. The command ends
with status 1 if an attack was neither refused nor harmless.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from perdure.cli import main
from perdure.models.pins import DEFAULT, KEPT
from perdure.verbs import push as push_verb


SECRET = "-----BEGIN THE KEY OF SOMEBODY-----"
LONGEST = 30  # seconds that a verb may take
OBEYED = "\x1b[2J", "\x9b2J", "\u202e", "\x07"  # what must not reach a terminal
EVIL = "news\x1b[2J\u202e\x9b2J\x07"
CODE = "open({ran!r}, 'w').close()\n"


class Place:
    """A folder with a lineage of two stages, its base and rows, and a folder outside of it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.lineage, self.base = folder / "lineage", folder / "base"
        self.outside, self.ran = folder / "outside", folder / "ran"

    def stage(self, number: int = 2) -> Path:
        [folder] = self.lineage.glob(f"stages/{number:04d}-*")
        return folder

    def code(self) -> str:
        """Return Python code that leaves a mark."""
        return CODE.format(ran=str(self.ran))

    def link(self, place: Path | str, target: Path | str) -> None:
        """Put a symbolic link at a place, instead of what is there."""
        place = self.lineage / place
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def rewrite(self, change: Callable[[list[dict[str, Any]]], None]) -> None:
        """Change the ledger's lines, and chain them again."""
        file, previous, lines = self.lineage / "ledger.jsonl", "", []
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        change(entries)
        for entry in entries:
            entry["previous"] = previous
            lines.append(json.dumps(entry, sort_keys=True, ensure_ascii=False))
            previous = hashlib.sha256(lines[-1].encode()).hexdigest()
        file.write_text("".join(line + "\n" for line in lines))
        (self.lineage / "newest.json").unlink(
            missing_ok=True
        )  # as in a lineage of an earlier release

    def edit(self, file: Path, **changes: Any) -> None:
        """Change keys of a JSON file."""
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    def record(self) -> None:
        """Write the hashes of the newest stage's files, and of the base's, into the ledger."""

        def change(entries: list[dict[str, Any]]) -> None:
            entries[-1]["files"] = {
                path.relative_to(self.stage()).as_posix(): _sha256(path)
                for path in sorted(self.stage().rglob("*"))
                if path.is_file()
            }

        self.rewrite(change)


@dataclass
class Outcome:
    """What a verb did: `what` in one word, its exit status, and the last line that it printed."""

    attack: str
    verb: str
    what: str
    status: int | None
    line: str
    seconds: float

    @property
    def is_safe(self) -> bool:
        return self.what in ("refused", "harmless")


@dataclass(frozen=True)
class Attack:
    """An attack: its name, what is planted, and the verb that is run, in the place's folder."""

    name: str
    plant: Callable[[Place], None]
    command: tuple[str, ...]


LEARN = ("learn", "lineage", "third", "third.jsonl")
PUSH = ("push", "lineage", "me/mine")
ATTACKS: list[Attack] = []


def attack(*command: str) -> Callable[[Callable[[Place], None]], Callable[[Place], None]]:
    """Add a function that plants something, with the verb that is then run, to `ATTACKS`."""

    def add(plant: Callable[[Place], None]) -> Callable[[Place], None]:
        ATTACKS.append(Attack(plant.__name__, plant, command))
        return plant

    return add


# --- symbolic links in place of a lineage's own files and folders


@attack(*LEARN)
def work_is_a_link(place):
    place.link(".work", place.outside / "photos")


@attack(*LEARN)
def a_checkpoint_is_a_link(place):
    place.link(".work/0003-third-0123456789abcdef", place.outside)


@attack(*LEARN)
def a_new_timings_file_is_a_link(place):
    place.link(".timings.json.new", place.outside / "notes.txt")


@attack("set", "lineage", "training.learning_rate=1e-3")
def a_new_settings_file_is_a_link(place):
    place.link(".lineage.yaml.new", place.outside / "notes.txt")


@attack("revert", "lineage")
def the_ledger_is_a_link(place):
    shutil.copy(place.lineage / "ledger.jsonl", place.outside / "ledger.jsonl")
    place.link("ledger.jsonl", place.outside / "ledger.jsonl")


@attack("revert", "lineage")
def the_copy_of_the_newest_line_is_a_link(place):
    (place.lineage / "newest.json").rename(place.outside / "newest.json")
    place.link("newest.json", place.outside / "newest.json")


@attack("revert", "lineage")
def the_lock_is_a_link(place):
    place.link("lock", place.outside / "made")


@attack("revert", "lineage")
def the_lock_is_a_pipe(place):
    (place.lineage / "lock").unlink()
    os.mkfifo(place.lineage / "lock")


@attack("log", "lineage")
def the_ledger_is_a_pipe(place):
    (place.lineage / "ledger.jsonl").unlink()
    os.mkfifo(place.lineage / "ledger.jsonl")


@attack(*LEARN)
def stages_is_a_link(place):
    shutil.copytree(place.lineage / "stages", place.outside / "stages")
    place.link("stages", place.outside / "stages")


@attack(*LEARN)
def the_next_stage_is_a_link(place):
    place.link("stages/0003-third", place.outside)


@attack("try", "lineage", "word")
def a_stage_is_a_link(place):
    shutil.copytree(place.stage(), place.outside / "stage")
    place.link(place.stage(), place.outside / "stage")


@attack("log", "lineage")
def a_stages_scores_are_a_link(place):
    shutil.copy(place.stage() / "scores.json", place.outside / "scores.json")
    place.link(place.stage() / "scores.json", place.outside / "scores.json")


@attack("init", "new", "base=base")
def a_new_lineage_has_a_link_for_its_stages(place):
    place.link(place.folder / "new/stages", place.outside)


@attack("init", "new", "base=base")
def a_new_lineage_has_a_link_for_its_ledger(place):
    place.link(place.folder / "new/ledger.jsonl", place.outside / "notes.txt")


@attack("export", "lineage", "merged")
def an_unfinished_export_is_a_link(place):
    place.link(place.folder / ".merged.new", place.outside)


@attack("report", "lineage", "--out", "page.html")
def an_unfinished_report_is_a_link(place):
    place.link(place.folder / ".page.html.new", place.outside / "notes.txt")


@attack(*LEARN)
def logs_is_a_link(place):
    _track(place)
    place.link("logs", place.outside)


@attack(*LEARN)
def the_logs_of_a_run_are_a_link(place):
    _track(place)
    place.link("logs/lineage", place.outside)


@attack("compare", "compare.yaml")
def the_cells_of_a_comparison_are_a_link(place):
    _compare(place)
    place.link(place.folder / "compared/cells", place.outside)


@attack("compare", "compare.yaml")
def the_log_of_a_cell_is_a_link(place):
    _compare(place)
    place.link(place.folder / "compared/cells/a.log", place.outside / "notes.txt")


@attack("compare", "compare.yaml")
def a_cell_of_a_comparison_is_a_link(place):
    _compare(place)
    place.link(place.folder / "compared/cells/a", place.outside)


def _track(place: Place) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["set", "lineage", "training.report_to=tensorboard"])


def _compare(place: Place) -> None:
    (place.folder / "compare.yaml").write_text(
        "base: base\nlineage: compared\nthreads: 1\nguard: null\nmax_completion_length: 2\n"
        "tasks: [{name: first, train: first.jsonl, test: first-test.jsonl}]\n"
        "adapter: {r: 2}\ngrid: {method: {plain: sequential}, seed: [0]}\n"
    )


# --- names in the ledger that lead out of the lineage


@attack(*LEARN)
def a_dropped_folder_lies_outside(place):
    (place.outside / "model.safetensors").write_text(SECRET)
    place.rewrite(lambda entries: entries[-1].update(dropped=["../outside"]))


@attack("revert", "lineage")
def a_dropped_folder_is_absolute(place):
    (place.outside / "model.safetensors").write_text(SECRET)
    place.rewrite(lambda entries: entries[-1].update(dropped=[str(place.outside)]))


@attack(*PUSH)
def a_stages_folder_lies_outside(place):
    place.rewrite(lambda entries: entries[-1].update(folder="../outside"))


@attack("verify", "lineage")
def a_stages_file_lies_outside(place):
    place.rewrite(lambda entries: entries[-1]["files"].update({"../../../outside/id_rsa": "0"}))


# --- uploads


@attack(*PUSH)
def a_stage_has_a_linked_folder(place):
    place.link(place.stage() / "keys", place.outside)


@attack(*PUSH)
def a_stage_has_a_linked_file(place):
    place.link(place.stage() / "tokenizer.json", place.outside / "id_rsa")


@attack(*PUSH)
def a_file_that_is_not_in_the_ledger_lies_in_a_stage(place):
    (place.stage() / "tokenizer.json").write_text(SECRET)


@attack(*PUSH)
def a_stage_has_files_that_are_not_of_a_model(place):
    for name in ("memory.jsonl", "rows.txt", "memory.jsonl.safetensors", "a/config.json"):
        (place.stage() / name).parent.mkdir(exist_ok=True)
        (place.stage() / name).write_text(SECRET)
    place.record()


@attack(*PUSH)
def weights_were_changed_after_they_were_recorded(place):
    with (place.stage() / "adapter_model.safetensors").open("ab") as file:
        file.write(SECRET.encode())


# --- code in a base


@attack("init", "new", "base=base")
def a_base_has_pickled_weights(place):
    (place.base / "model.safetensors").unlink()
    (place.base / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(place.code())))


@attack("rebase", "lineage", "base")
def a_base_is_replaced_by_one_with_pickled_weights(place):
    (place.base / "model.safetensors").rename(place.folder / "weights")
    (place.base / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil(place.code())))


@attack("init", "new", "base=base")
def a_tokenizer_brings_code(place):
    _bring_code(place, "tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", None]})
    place.edit(place.base / "tokenizer_config.json", tokenizer_class="Evil")


@attack("init", "new", "base=base")
def a_config_brings_code(place):
    _bring_code(place, "config.json", {"AutoConfig": "evil.Evil"})
    place.edit(place.base / "config.json", model_type="evil")


@attack("init", "new", "base=base")
def a_model_brings_code(place):
    _bring_code(place, "config.json", {"AutoModelForCausalLM": "evil.Evil"})


@attack("init", "new", "base=base")
def a_base_brings_its_own_generate(place):
    (place.base / "custom_generate").mkdir()
    (place.base / "custom_generate" / "generate.py").write_text(place.code())


@attack("init", "new", "base=base")
def a_config_takes_attention_from_the_hub(place):
    place.edit(place.base / "config.json", attn_implementation="somebody/attention")


@attack("try", "lineage", "word")
def a_learned_lineage_has_a_tokenizer_with_code(place):
    a_tokenizer_brings_code(place)

    def change(entries: list[dict[str, Any]]) -> None:
        files = {p.name: _sha256(p) for p in place.base.iterdir() if p.suffix in KEPT}
        entries[0]["base"]["files"] = files

    place.rewrite(change)


@attack("try", "lineage", "word")
def an_adapter_has_pickled_weights(place):
    (place.stage() / "adapter_model.safetensors").unlink()
    (place.stage() / "adapter_model.bin").write_bytes(pickle.dumps(_Evil(place.code())))
    place.record()


@attack("init", "new", "base=base", "--adapter", "adapter")
def an_adapters_tokenizer_brings_code(place):
    place.stage().rename(place.folder / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place.base / name, place.folder / "adapter" / name)
    place.base.rename(place.folder / "kept")
    (place.folder / "adapter").rename(place.base)
    a_tokenizer_brings_code(place)
    place.base.rename(place.folder / "adapter")
    (place.folder / "kept").rename(place.base)


@attack("evaluate", "lineage")
def a_ledgers_metric_is_code_in_the_lineage(place):
    (place.lineage / "evil.py").write_text(place.code() + "def f(a, b): return 1.0\n")
    _score_by(place, "lineage.evil:f")


@attack("report", "lineage", "--out", "page.html")
def a_ledgers_metric_is_code_that_a_report_imports(place):
    (place.folder / "evil_metric.py").write_text(place.code() + "def f(a, b): return 1.0\n")
    _score_by(place, "evil_metric:f")


def _score_by(place: Place, metric: str) -> None:
    place.rewrite(lambda entries: entries[-1]["task"].update(metric=metric, metric_source="0"))


def _bring_code(place: Place, file: str, auto_map: dict[str, Any]) -> None:
    (place.base / "evil.py").write_text(place.code() + "class Evil: pass\n")
    place.edit(place.base / file, auto_map=auto_map)


class _Evil:
    """An object whose pickle runs code when it is loaded."""

    def __init__(self, code: str):
        self.code = code

    def __reduce__(self) -> Any:
        return exec, (self.code,)


# --- what a terminal or a page would obey


@attack("log", "lineage")
def a_task_has_a_name_that_a_terminal_obeys(place):
    place.rewrite(lambda entries: entries[-1]["task"].update(name=EVIL, id=EVIL))


@attack("log", "lineage")
def a_base_has_a_name_that_a_terminal_obeys(place):
    place.rewrite(lambda entries: entries[0]["base"].update(name=EVIL))


@attack("log", "lineage", "--json")
def a_reason_in_json_would_be_obeyed(place):
    _plant_a_refusal(place)


@attack("report", "lineage", "--out", "page.html")
def a_reason_in_a_page_would_be_obeyed(place):
    _plant_a_refusal(place)


@attack("show", "lineage")
def a_verdict_would_be_obeyed(place):
    place.edit(place.stage() / "verdict.json", suggestion=EVIL)
    place.record()


@attack("verify", "lineage")
def a_file_has_a_name_that_a_terminal_obeys(place):
    (place.stage() / EVIL.replace("/", "")).write_text("")


@attack("report", ".", "--out", "page.html")
def a_lineage_has_a_name_that_a_page_would_obey(place):
    shutil.copytree(place.lineage, place.folder / EVIL)


@attack("try", f"lineage{EVIL}", "word")
def a_folder_has_a_name_that_a_terminal_obeys(place):
    pass


def _plant_a_refusal(place: Place) -> None:
    def change(entries: list[dict[str, Any]]) -> None:
        newest = entries[-1]
        line = {key: newest[key] for key in ("stage", "task", "method", "mode", "scores")}
        line |= {"verb": "refused", "parent": newest["stage"], "files": {}, "key": "0" * 32}
        entries.append({**line, "folder": "refused/0003-third-00000000", "reasons": [EVIL]})

    place.rewrite(change)


# --- results


def outcome(attack: Attack, place: Place) -> Outcome:
    """Plant an attack in a place, run the verb, and return what happened."""
    with contextlib.chdir(place.folder):
        attack.plant(place)
        before, uploaded = _tree(place.outside), _Uploads()
        out, err, crash = io.StringIO(), io.StringIO(), ""
        began, status = time.perf_counter(), 0
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            _standard_input("y\n" * 9),
            uploaded,
        ):
            try:
                with _limited(LONGEST):
                    main(attack.command)
            except SystemExit as stopped:
                status = int(stopped.code or 0)
            except _TooLong:
                crash = "HUNG"
            except BaseException:
                crash = "TRACEBACK"
                err.write(traceback.format_exc(limit=-1))
        seconds = time.perf_counter() - began
        shown = [*out.getvalue().splitlines(), *err.getvalue().splitlines()]
        if place.ran.exists():
            what = "RAN"
        elif _tree(place.outside) != before:
            what = "REACHED"
        elif SECRET in uploaded.text:
            what = "LEAKED"
        elif any(sign in out.getvalue() + err.getvalue() + _pages(place) for sign in OBEYED):
            what = "OBEYED"
        else:
            what = crash or ("refused" if status else "harmless")
        line = repr(shown[-1])[1:-1] if shown else ""
        return Outcome(attack.name, attack.command[0], what, status, line, round(seconds, 2))


class _Uploads:
    """Replaces the client of the hub in a `with` block, and keeps what would be uploaded."""

    def __init__(self):
        self.names: list[str] = []
        self.text = ""
        self.endpoint = "https://hub"

    def create_repo(self, *arguments: Any, **settings: Any) -> None:
        pass

    def upload_folder(self, folder_path: Path, **settings: Any) -> None:
        for path in sorted(Path(folder_path).rglob("*")):
            if path.is_file():
                self.names.append(path.relative_to(folder_path).as_posix())
                self.text += path.read_bytes().decode(errors="replace")

    def __enter__(self) -> "_Uploads":
        self.client = push_verb.HfApi
        push_verb.HfApi = lambda: self  # type: ignore[assignment]
        return self

    def __exit__(self, *error: Any) -> None:
        push_verb.HfApi = self.client


class _TooLong(BaseException):
    pass


@contextlib.contextmanager
def _limited(seconds: int):
    """End a block by an exception if it takes longer."""

    def stop(*arguments: Any) -> None:
        raise _TooLong

    earlier = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


@contextlib.contextmanager
def _standard_input(text: str):
    """Let a block read a text as its standard input."""
    earlier, sys.stdin = sys.stdin, io.StringIO(text)
    try:
        yield
    finally:
        sys.stdin = earlier


def _tree(folder: Path) -> dict[str, str]:
    """Return every path below a folder, with the hash of a file, and what a link points to."""
    return {
        path.relative_to(folder).as_posix(): (
            os.readlink(path) if path.is_symlink() else _sha256(path) if path.is_file() else ""
        )
        for path in folder.rglob("*")
    }


def _pages(place: Place) -> str:
    """Return the text of the reports in a place."""
    return "".join(page.read_text() for page in place.folder.glob("page.*"))


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def make_place(folder: Path) -> Place:
    """Make a lineage of two stages on a copy of the default base, and the folder outside."""
    place = Place(folder)
    shutil.copytree(DEFAULT, place.base)
    for name in ("first", "second", "third"):
        for word, file in (("one", f"{name}.jsonl"), ("two", f"{name}-test.jsonl")):
            rows = [{"prompt": f"{name} {word} {i}: ", "completion": name} for i in range(8)]
            (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["base=base", "method=sequential", "adapter={r: 2}", "threads=1", "guard=null"]
    settings += ["training={num_train_epochs: 1}", "max_completion_length=2", "max_length=32"]
    with contextlib.chdir(folder):
        commands = [["init", "lineage", *settings]]
        for name in ("first", "second"):
            files = (f"{name}.jsonl", "--test", f"{name}-test.jsonl")
            commands.append(["learn", "lineage", name, *files])
        for command in commands:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
                main(command)
    assert place.stage(2).is_dir()
    (place.outside / "photos" / "2025").mkdir(parents=True)
    (place.outside / "photos" / "2025" / "one.jpg").write_text("precious")
    (place.outside / "id_rsa").write_text(SECRET)
    (place.outside / "notes.txt").write_text("mine")
    return place


def copy_of(place: Place, folder: Path) -> Place:
    shutil.copytree(place.folder, folder, symlinks=True)
    return Place(folder)


def run(folder: Path, only: str = "") -> list[Outcome]:
    """Make every attack, each in a copy of its own below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    original = make_place(folder / "original")
    return [
        outcome(chosen, copy_of(original, folder / chosen.name))
        for chosen in ATTACKS
        if not only or any(word in chosen.name for word in only.split(","))
    ]


def table(outcomes: list[Outcome]) -> str:
    lines = [f"{'attack':52}{'verb':10}{'what':11}{'status':>6}{'s':>6}  line"]
    for one in outcomes:
        name = one.attack.replace("_", " ")
        lines.append(
            f"{name:52}{one.verb:10}{one.what:11}{one.status!s:>6}{one.seconds:6.1f}  "
            f"{one.line[:150]}"
        )
    safe = sum(one.is_safe for one in outcomes)
    lines.append(f"{safe} of {len(outcomes)} attacks were refused or harmless")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--only", default="", help="only the attacks with this in their name")
    parser.add_argument("--json", action="store_true")
    typed = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        outcomes = run((typed.folder or Path(temporary)).resolve(), typed.only)
    print(json.dumps([asdict(o) for o in outcomes], indent=1) if typed.json else table(outcomes))
    sys.exit(not all(one.is_safe for one in outcomes))
