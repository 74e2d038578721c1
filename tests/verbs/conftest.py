"""Lineages of two learned tasks, made once and copied for each test, which stands beside its own.

    base/  colour-train.jsonl  colour-test.jsonl  animal-...  lineage/

The base is named by its relative path, so a copy is on the base beside it.
"""

import contextlib
import functools
import shutil
from pathlib import Path

import pytest

from place import learned, setting_for
from tiny import KINDS


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    @functools.cache
    def made(kind: str, whole: bool) -> Path:
        folder = tmp_path_factory.mktemp(f"{kind}-{'whole' if whole else 'adapter'}")
        setting = {**setting_for(kind, folder, n=24), "base": "base", "max_length": 64}
        if whole:
            setting |= {"adapter": None, "training": {"learning_rate": 1e-3, "num_train_epochs": 1}}
        with contextlib.chdir(folder):
            learned(setting, "lineage")
        return folder

    return made


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def place(kind, template, tmp_path, monkeypatch) -> Path:
    """The folder the test stands in; its lineage has adapters."""
    return copied(template(kind, False), tmp_path / "here", monkeypatch)


@pytest.fixture
def whole_place(kind, template, tmp_path, monkeypatch) -> Path:
    """The folder the test stands in; its lineage has whole weights."""
    return copied(template(kind, True), tmp_path / "here", monkeypatch)


def copied(folder: Path, to: Path, monkeypatch) -> Path:
    shutil.copytree(folder, to)
    monkeypatch.chdir(to)
    return to
