"""Files are hashed once a process, in pieces."""

import os
import tracemalloc

import pytest

from perdure.lineage.files import hash_folder
from perdure.models import hashing
from perdure.models.hashing import file_hash, hash_again


pytestmark = pytest.mark.own


def test_a_file_is_hashed_once_a_process_and_again_when_it_was_changed(tmp_path, monkeypatch):
    hash_again()
    file, digests = tmp_path / "file", []
    file.write_text("one")
    digest = hashing.hashlib.file_digest
    monkeypatch.setattr(hashing.hashlib, "file_digest", lambda *a: digests.append(a) or digest(*a))
    assert file_hash(file) == file_hash(file)
    assert len(digests) == 2  # it was written just now
    os.utime(file, (1, 1))
    monkeypatch.setattr(hashing, "SETTLED", -1000.0)
    one = file_hash(file)
    assert file_hash(file) == one
    assert len(digests) == 3
    file.write_text("two")
    assert file_hash(file) != one
    hash_again()
    file_hash(file)
    assert len(digests) == 5


def test_hashing_takes_no_memory(tmp_path):
    file = tmp_path / "file"
    with file.open("wb") as writing:
        writing.truncate(50_000_000)
    tracemalloc.start()
    hash_folder(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
