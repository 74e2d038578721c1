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
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from attacks import ATTACKS, SECRET, Attack, Place, sha256

from perdure.cli import main
from perdure.models.pins import DEFAULT
from perdure.verbs import push as push_verb


LONGEST = 30  # seconds that a verb may take
OBEYED = "\x1b[2J", "\x9b2J", "\u202e", "\x07"  # what must not reach a terminal


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
            os.readlink(path) if path.is_symlink() else sha256(path) if path.is_file() else ""
        )
        for path in folder.rglob("*")
    }


def _pages(place: Place) -> str:
    """Return the text of the reports in a place."""
    return "".join(page.read_text() for page in place.folder.glob("page.*"))


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
