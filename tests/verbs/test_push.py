"""`push`: a stage on the hub, without a row of its tasks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from command import perdure, tree
from hub import Hub, serving
from perdure.api import push, rebase
from perdure.data.rows import read_rows
from perdure.lineage.lineage import Lineage
from place import learn, task


causal = pytest.mark.parametrize("kind", ["causal"])


@pytest.fixture
def hub(monkeypatch):
    """A hub that the client of this process talks to."""
    with serving(Hub()) as server:
        talk_to(server.url, monkeypatch)
        yield server


def talk_to(url: str, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")


def holds_no_row(files: dict[str, bytes]) -> bool:
    """Whether no file holds a prompt of any task, in any form."""
    rows = [row for file in Path().glob("*.jsonl") for row in read_rows(file)]
    return bool(rows) and not any(
        row["prompt"].encode() in content for row in rows for content in files.values()
    )


def test_an_adapter_with_its_card(place, kind, hub):
    before = tree(place)
    assert push("lineage", "me/mine", 1, private=True) == f"{hub.url}/me/mine"
    assert hub.repositories["me/mine"]["visibility"] == "private"
    assert hub.messages == ["Stage 1: colour"]
    learned = {"adapter_config.json", "adapter_model.safetensors"}
    learned |= {"head.safetensors"} if kind == "encoder" else set()
    assert set(hub.files) == learned | {"README.md"}  # the scores stand in the card
    for name in learned:
        assert hub.files[name] == Path("lineage/stages/0001-colour", name).read_bytes()
    assert holds_no_row(hub.files)
    card = hub.files["README.md"].decode()
    assert 'stage = "me/mine"' in card
    assert "PeftModel.from_pretrained(model, stage)" in card
    assert "| colour | " in card
    assert " | 10 | exact_match |" in card
    assert "stage 1, colour: " in card
    assert "lineage" not in card
    if kind == "encoder":
        assert 'cached_file(stage, "head.safetensors")' in card
    assert tree(place) == before


@causal
def test_a_second_push_leaves_nothing_of_the_first_that_would_be_loaded(place, hub):
    """Transformers would apply an adapter that is there to the merged weights as well."""
    push("lineage", "me/mine", 1)
    hub.files["notes.md"] = b"of the user"
    push("lineage", "me/mine", 2, merged=True)
    assert not [name for name in hub.files if name.startswith("adapter_")]
    assert {"model.safetensors", "config.json", "README.md", "notes.md"} <= set(hub.files)
    push("lineage", "me/mine", 2)
    assert set(hub.files) == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md", "notes.md")
    }


def test_merged_into_one_plain_model(place, kind, hub):
    before = tree(place)
    push("lineage", "me/mine", merged=True)
    assert "visibility" not in hub.repositories["me/mine"]  # the owner's default
    expected = {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert expected <= set(hub.files)
    assert ("head.safetensors" in hub.files) == (kind == "encoder")
    assert not [name for name in hub.files if "adapter" in name]
    assert holds_no_row(hub.files)
    card = hub.files["README.md"].decode()
    assert 'stage = "me/mine"' in card
    assert "peft" not in card.lower()
    assert "/tmp" not in card
    assert tree(place) == before


@causal
def test_whole_weights(whole_place, hub):
    learn("lineage", task("colour"))
    push("lineage", "me/mine")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files)
    assert not {"memory.jsonl", "method.safetensors"} & set(hub.files)
    assert holds_no_row(hub.files)
    assert 'stage = "me/mine"' in hub.files["README.md"].decode()
    result = perdure("push", "lineage", "me/mine", "--stage", 1)
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "stage 1 were removed" in result.err


@causal
def test_after_a_rebase_the_adapter_names_the_new_place(place, hub):
    Path("base").rename("moved")
    rebase("lineage", "moved")
    push("lineage", "me/mine")
    named = json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"]
    assert named == "moved"
    assert 'base = "moved"' in hub.files["README.md"].decode()


@causal
@pytest.mark.slow  # most of it is imports; the other tests patch the client of this process
def test_from_the_command_line_with_the_client_of_its_own_process(place):
    """The reference: nothing is patched; the address of the hub comes from the environment."""
    with serving(Hub()) as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_of_the_test",
        }
        process = subprocess.run(
            [sys.executable, "-m", "perdure.cli", "push", "lineage", "me/mine", "--json"],
            capture_output=True,
            text=True,
            env=environment,
        )
    assert process.returncode == 0, process.stderr
    address = f"{hub.url}/me/mine"
    assert json.loads(process.stdout) == {"lineage": "lineage", "address": address}
    assert "adapter_model.safetensors" in hub.files
    assert holds_no_row(hub.files)
    assert "Traceback" not in process.stderr


def refused(*words: str) -> None:
    before = tree(Path())
    result = perdure("push", "lineage", "me/mine")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("perdure: error: me/mine: the upload failed (")
    assert result.err.count("\n") == 1, result.err
    assert "hf_of_the_test" not in result.err
    for word in (*words, "hf auth login"):
        assert word in result.err, result.err
    assert tree(Path()) == before


@causal
@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_hub_that_refuses(place, hub, status):
    hub.status = status
    refused(str(status))
    assert hub.files == {}


@causal
def test_a_hub_that_cannot_be_reached(place, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    talk_to(f"http://127.0.0.1:{port}", monkeypatch)
    refused("refused")


@causal
def test_without_a_token(place, hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    hub.status = 401
    refused("401")


@causal
def test_offline(place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")
    refused("offline")


@causal
def test_what_needs_no_connection_to_be_refused(place, hub):
    for arguments, words in (
        (("me/mine", "--stage", 0), "stage 0 is the base; learn a task"),
        (("me/mine", "--stage", 9), "no stage 9"),
        (("mine",), "OWNER/NAME"),
        (("me/mi ne",), "not a repository's name"),
        (("me/mine/more",), "not a repository's name"),
        (("",), "not a repository's name"),
    ):
        result = perdure("push", "lineage", *arguments)
        assert result.status == 2
        assert result.err.count("\n") == 1
        assert words in result.err
    assert hub.asked == []
    assert len(Lineage("lineage").ledger) == 3
