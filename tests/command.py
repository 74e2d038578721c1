"""The command line in this process, and what it must not touch."""

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

from perdure.cli import main
from tiny import save_tiny, tiny_rows


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def perdure(*arguments: object) -> Result:
    """Run `perdure ARGUMENTS`."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = int(stopped.code or 0)
    return Result(status, out.getvalue(), err.getvalue())


def tree(folder: Path) -> dict[str, str]:
    """Every path under a folder, with the hash of its bytes if it is a file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "folder"
        for path in sorted(folder.rglob("*"))
    }


def refused(folder: Path, *arguments: object, names: tuple[str, ...]) -> None:
    """The command fails as every bad input does, and its line holds these words."""
    before = tree(folder)
    status, out, err = perdure(*arguments)
    assert (status, out) == (2, ""), err
    assert err.startswith("perdure: error: ")
    assert err.count("\n") == 1, err
    for name in names:
        assert name in err
    assert tree(folder) == before


def write_rows(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def workplace(folder: Path) -> Path:
    """A tiny base, the rows of two tasks, and a YAML that learns both."""
    save_tiny("causal", folder / "base")
    for task in ("colour", "animal"):
        write_rows(folder / f"{task}.jsonl", tiny_rows(task, 16))
        write_rows(folder / f"{task}-test.jsonl", tiny_rows(task, 8, seed=1))
    tasks = "".join(
        f"  - {{name: {task}, train: {folder}/{task}.jsonl, test: {folder}/{task}-test.jsonl}}\n"
        for task in ("colour", "animal")
    )
    (folder / "run.yaml").write_text(
        f"base: {folder}/base\n"
        f"lineage: {folder}/lineage\n"
        f"tasks:\n{tasks}"
        "training: {num_train_epochs: 1, learning_rate: 1e-2}\n"
        "adapter: {r: 2}\n"
        "max_completion_length: 4\n"
        "threads: 1\n"
    )
    return folder
