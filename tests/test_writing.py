"""What cannot be written is said in one line, whatever the library raises."""

import contextlib
import errno
import io
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from command import perdure
from perdure.cli import main
from perdure.errors import PerdureError
from perdure.writing import REASONS, in_one_line, why, writing


pytestmark = pytest.mark.own

FULL = Path("/dev/full")


@pytest.fixture
def largest(request):
    """No file may have more than a thousand bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "python": lambda file: file.write_text("x" * 10_000),
    "safetensors": lambda file: save_file({"a": torch.zeros(10_000)}, file),
    "torch": lambda file: torch.save(torch.zeros(10_000), file),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_may_not_be_so_large(writer, largest, tmp_path):
    file = tmp_path / "file"
    with pytest.raises(PerdureError) as error, writing(file, unfinished=file):
        WRITERS[writer](file)
    reasons = (REASONS[errno.EFBIG], "the disk is full, or the file may not be written")
    assert str(error.value).startswith(f"{file}: ")
    assert any(reason in str(error.value) for reason in reasons)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", REASONS)
def test_each_reason_is_said_with_the_file_of_the_error(number):
    with pytest.raises(PerdureError) as error, writing(Path("folder")):
        raise OSError(number, os.strerror(number), "folder/file")
    assert str(error.value).startswith(f"folder/file: {REASONS[number]}; ")


def test_other_errors_stay_what_they_are(tmp_path):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    with pytest.raises(FileNotFoundError), writing(tmp_path, unfinished=unfinished):
        (tmp_path / "missing").read_text()
    assert not unfinished.exists()
    for error in (ValueError("code: 28"), RuntimeError("code: 28"), KeyError("os error 28")):
        assert why(error) is None
        assert in_one_line(error) is None


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("arguments", [["methods"], ["log", "--help"]])
def test_an_output_that_is_full_is_one_line(arguments):
    errors = io.StringIO()
    with (
        contextlib.redirect_stdout(FULL.open("w")),
        contextlib.redirect_stderr(errors),
        pytest.raises(SystemExit) as end,
    ):
        main(arguments)
    assert end.value.code == 2
    (line,) = errors.getvalue().splitlines()
    assert line.startswith("perdure: error: ")
    assert line.endswith(f": {REASONS[errno.ENOSPC]}; fix that, and repeat the command")


def test_a_file_that_may_not_be_read_is_one_line(monkeypatch):
    def refuse(*arguments, **keywords):
        raise PermissionError(errno.EACCES, "Permission denied", "my-model/lineage.yaml")

    monkeypatch.setattr("perdure.api.log", refuse)
    status, out, err = perdure("log", "my-model")
    assert (status, out) == (2, "")
    assert err == (
        "perdure: error: my-model/lineage.yaml: permission is denied; fix that, and repeat the "
        "command\n"
    )
