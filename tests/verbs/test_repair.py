"""`repair` restores what can be restored, and says what cannot."""

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from command import perdure
from perdure import PerdureError, writing
from perdure.api import learn as learn_rows
from perdure.api import log, repair, revert, verify
from perdure.lineage.files import hash_folder
from perdure.lineage.mending import with_bit_restored
from place import learn, task
from tiny import tiny_rows


pytestmark = pytest.mark.own

STAGE = Path("lineage/stages/0002-animal")
causal = pytest.mark.parametrize("kind", ["causal"])


def flip(path: Path, at: int, bit: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def contents() -> dict[str, str]:
    hashes = hash_folder(Path("lineage"))
    return {name: sha for name, sha in hashes.items() if "damaged" not in name and name != "lock"}


def test_a_flipped_bit_is_found_by_the_hash():
    content = b"any content" * 20
    sha256 = hashlib.sha256(content).hexdigest()
    changed = bytearray(content)
    changed[100] ^= 16
    assert with_bit_restored(bytes(changed), sha256) == content
    changed[7] ^= 1
    assert with_bit_restored(bytes(changed), sha256) is None


@causal
def test_ledger_settings_times_and_small_files(place):
    before = contents()
    ledger, newest = Path("lineage/ledger.jsonl"), Path("lineage/newest.json")
    whole, size = ledger.read_bytes(), ledger.stat().st_size
    for at in (50, size // 2, size - 50):  # the first line, one between, the newest
        flip(ledger, at)
        assert repair("lineage")["restored"]
        assert ledger.read_bytes() == whole
    ledger.write_bytes(whole[:-1])
    newest_content = newest.read_bytes()
    repair("lineage")
    assert ledger.read_bytes() == whole
    newest.unlink()
    repair("lineage")
    assert newest.read_bytes() == newest_content
    Path("lineage/lineage.yaml").write_bytes(b"\xff")
    flip(STAGE / "scores.json", 20)
    flip(STAGE / "adapter_config.json", 20)
    result = repair("lineage")
    assert (len(result["restored"]), result["lost"]) == (3, [])
    Path("lineage/.lineage.yaml.new").touch()
    Path("lineage/lineage.yaml").unlink()
    with pytest.raises(PerdureError, match=r"lineage\.yaml is missing; `perdure repair lineage`"):
        verify("lineage")
    repair("lineage")
    assert contents() == before
    Path("lineage/timings.json").write_text("{")
    assert "timings.json: damaged" in verify("lineage")[0]
    repair("lineage")
    assert Path("lineage/timings.json.damaged").read_text() == "{"
    assert verify("lineage") == []
    Path("lineage/.work/repair/checkpoints").mkdir(parents=True)  # of one that was killed
    assert repair("lineage") == {"restored": [], "lost": [], "stage": 2}
    assert not Path("lineage/.work").exists()


@causal
def test_line_ends_that_git_has_changed(place):
    before, ledger = contents(), Path("lineage/ledger.jsonl")
    whole = ledger.read_bytes()
    stage_texts = [file for file in STAGE.iterdir() if file.suffix in (".json", ".jsonl", ".md")]
    texts = [ledger, Path("lineage/newest.json"), *stage_texts]
    for file in texts:
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    refused = perdure("verify", "lineage")
    assert refused.status == 2
    words = " ".join(refused.err.split())
    assert "ledger.jsonl: the ends of its lines were changed to CRLF" in words
    assert "`perdure repair lineage` puts them back" in words
    ledger.write_bytes(whole)
    assert len(verify("lineage")) == len(texts) - 1
    assert all("changed to CRLF" in line for line in verify("lineage"))
    ledger.write_bytes(whole.replace(b"\n", b"\r\n"))
    result = repair("lineage")
    assert (len(result["restored"]), result["lost"]) == (len(texts) - 1, [])
    assert contents() == before
    for content in (whole + b"\n", whole.replace(b"\n", b"\n\n", 1), b"\n" + whole):
        ledger.write_bytes(content)
        with pytest.raises(PerdureError, match=r"has blank lines.*`perdure repair lineage`"):
            verify("lineage")
        assert len(repair("lineage")["restored"]) == 1
        assert ledger.read_bytes() == whole


@causal
def test_a_folder_that_was_renamed_and_a_file_that_became_a_link(place):
    before = contents()
    (STAGE / "memory.jsonl").rename("elsewhere.jsonl")
    (STAGE / "memory.jsonl").symlink_to(Path("elsewhere.jsonl").absolute())
    assert len(repair("lineage")["restored"]) == 1
    STAGE.rename("lineage/stages/0007-other")
    assert "renamed back" in repair("lineage")["restored"][0]
    assert contents() == before


@causal
def test_a_link_stays_until_the_copy_of_its_target_is_complete(place, monkeypatch):
    (STAGE / "memory.jsonl").rename("elsewhere.jsonl")
    (STAGE / "memory.jsonl").symlink_to(Path("elsewhere.jsonl").absolute())
    with monkeypatch.context() as full:
        full.setattr(writing.shutil, "copyfileobj", disk_is_full)
        with pytest.raises(PerdureError, match="no space is left on the disk"):
            repair("lineage")
    assert (STAGE / "memory.jsonl").is_symlink()
    assert len(repair("lineage")["restored"]) == 1
    assert (STAGE / "memory.jsonl").read_bytes() == Path("elsewhere.jsonl").read_bytes()
    assert not (STAGE / "memory.jsonl").is_symlink()
    assert verify("lineage") == []


def disk_is_full(*files: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@causal
def test_a_stage_is_learned_again_to_its_bytes(place):
    before = contents()
    (STAGE / "adapter_model.safetensors").write_bytes(b"")
    (STAGE / "memory.jsonl").unlink()
    (STAGE / "method.safetensors").unlink()
    result = perdure("repair", "lineage")
    assert (result.status, result.out.count("learned again, to the same bytes")) == (0, 1)
    assert all(word not in result.err for word in ("Loading weights", "Warning", "[transformers]"))
    assert contents() == before
    shutil.rmtree("lineage/stages")
    assert len(repair("lineage")["restored"]) == 2
    assert contents() == before
    assert verify("lineage") == []
    assert not Path("lineage/.work/repair").exists()


@causal
def test_without_its_rows_a_stage_is_lost_and_the_lineage_goes_on_from_the_one_before(place):
    os.truncate(STAGE / "adapter_model.safetensors", 100)
    rows = Path("animal-train.jsonl").read_text()
    Path("animal-train.jsonl").write_text(rows.partition("\n")[2])
    result = perdure("repair", "lineage")
    assert result.status == 1
    words = "adapter_model.safetensors: cannot be restored: its train rows have changed"
    assert words in " ".join(result.err.split())
    assert "went back from stage 2 to stage 1" in result.out
    assert [line["verb"] for line in log("lineage")] == ["init", "learn", "learn", "revert"]
    Path("animal-train.jsonl").write_text(rows)
    result = repair("lineage")
    assert result["lost"] == []
    assert "`perdure revert lineage --to 2` goes forward again" in result["restored"][-1]
    assert repair("lineage")["restored"] == []
    revert("lineage", 2)
    assert verify("lineage") == []


@causal
def test_rows_given_in_python_are_in_no_file(place):
    learn_rows("lineage", "count", train=tiny_rows("count", 8))
    (Path("lineage/stages/0003-count") / "adapter_model.safetensors").unlink()
    result = repair("lineage")
    assert "train rows were given in Python" in result["lost"][0]
    assert result["stage"] == 2
    assert learn("lineage", task("colour"))["stage"] == 4


@causal
def test_what_repair_leaves_to_the_user_is_named_as_by_verify(place):
    for file in (STAGE / ".DS_Store", STAGE.with_name("._x")):
        file.touch()
    STAGE.with_name("0002-animal (1)").mkdir()
    flip(Path("base/model.safetensors"), -1)
    result = perdure("repair", "lineage")
    words = " ".join(result.err.split())
    assert (result.status, words.count("it does not belong there, delete it or move it")) == (1, 3)
    assert "model.safetensors missing or changed; put it back, or if the base has moved" in words
    assert "nothing is damaged" not in result.out
    assert repair("lineage")["lost"] == verify("lineage")
    Path("base").rename("moved")
    assert "`perdure rebase`" in repair("lineage")["lost"][-1]


def test_what_is_not_a_lineage_is_refused(tmp_path):
    with pytest.raises(PerdureError, match=r"not a lineage \(no ledger\.jsonl in it\)"):
        repair(tmp_path)
