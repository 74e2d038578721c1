"""Nothing of a lineage is used before its hash is compared with the ledger."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import perdure
from perdure import PerdureError, api
from perdure.lineage.files import hash_folder
from place import learn, task


pytestmark = [pytest.mark.own, pytest.mark.parametrize("kind", ["causal"])]

STAGE = Path("lineage/stages/0002-animal")
FIRST = Path("lineage/stages/0001-colour")


def flip(path: Path, at: int = -2) -> None:
    """Flip a bit, which leaves a text readable and a tensor a tensor."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def answer() -> Any:
    return api.answer("lineage", ["question the alpha beta = answer : "])


def next_task() -> Any:
    return learn("lineage", task("colour", training={"max_steps": 1}))


def adopted() -> Any:
    shutil.copytree(FIRST, "elsewhere", dirs_exist_ok=True)
    return api.adopt("lineage", "elsewhere", "colour", test="colour-test.jsonl")


USES: dict[str, Callable[[], Any]] = {
    "try": answer,
    "chat": lambda: api.chat("lineage"),
    "evaluate": lambda: api.evaluate("lineage"),
    "check": lambda: api.check("lineage"),
    "export": lambda: api.export("lineage", "out"),
    "learn": next_task,
    "adopt": adopted,
    "dry run": lambda: api.learn("lineage", "more", train="colour-train.jsonl", dry_run=True),
    "log": lambda: api.log("lineage"),
    "show": lambda: api.show("lineage", flips=True),
    "report": lambda: api.report("lineage", out="report.html"),
}
MODEL = ("try", "chat", "evaluate", "check", "export", "learn", "adopt", "dry run")
READERS = {
    "adapter_model.safetensors": MODEL,
    "adapter_config.json": MODEL,
    "method.safetensors": ("learn", "adopt", "report"),
    "memory.jsonl": ("learn", "adopt", "dry run", "show", "report"),
    "scores.json": ("export", "report"),
    "predictions.json.gz": ("learn", "adopt", "show", "report"),
    "guard.json.gz": ("learn", "adopt", "show"),
    "verdict.json": ("log", "show", "report", "export"),
}


@pytest.mark.parametrize(
    ("name", "verb"), [(name, verb) for name, verbs in READERS.items() for verb in verbs]
)
def test_what_a_verb_reads_was_not_changed(place, name, verb):
    if not (STAGE / name).exists():
        pytest.skip("this lineage has no such file")
    before = hash_folder(Path("lineage"))
    for damage in (remove, flip):
        content = (STAGE / name).read_bytes()
        damage(STAGE / name)
        state = "missing" if damage is remove else "is not as it was written"
        with pytest.raises(PerdureError, match=f"^{STAGE / name}: {state}; "):
            USES[verb]()
        (STAGE / name).write_bytes(content)
    assert hash_folder(Path("lineage")) == before


def test_the_memory_of_an_earlier_stage_was_not_changed(place):
    flip(FIRST / "memory.jsonl")
    result = perdure("learn", "lineage", "more", "colour-train.jsonl")
    assert result.status == 2
    error = result.err.splitlines()[-1]
    assert f"perdure: error: {FIRST}/memory.jsonl: is not as it was written" in error


def test_a_flipped_setting_of_an_adapter_is_not_used(place):
    file = STAGE / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"lora_alpha": settings["lora_alpha"] + 1}))
    with pytest.raises(PerdureError, match=r"adapter_config\.json: is not as it was written"):
        answer()


def test_whole_weights_that_are_missing_are_not_called_removed(whole_place):
    flip(STAGE / "tokenizer.json")
    with pytest.raises(PerdureError, match=r"tokenizer\.json: is not as it was written"):
        answer()


def test_a_file_beside_whole_weights_is_not_loaded_with_them(whole_place):
    (STAGE / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(PerdureError, match=r"index\.json: is not in the ledger"):
        answer()


def test_a_file_that_another_process_deletes_meanwhile_is_an_error_of_one_line(place, monkeypatch):
    missing = {"name": "lineage/stages/0001-colour/model.safetensors"}

    def deleted(*arguments, **keywords):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", missing["name"])

    monkeypatch.setattr("perdure.verbs.show.show", deleted)
    result = perdure("show", "lineage")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert f"{missing['name']}: missing; another process may have just deleted it" in result.err
    missing["name"] = "elsewhere/stages/0001-colour/model.safetensors"
    with pytest.raises(FileNotFoundError):
        perdure("show", "lineage")


def test_a_damaged_stage_that_was_reverted_stops_nothing(place):
    for file in STAGE.iterdir():
        flip(file)
    api.revert("lineage", 1)
    assert [line["stage"] for line in api.log("lineage")] == [0, 1, 2, 1]
    assert next_task()["stage"] == 3
