"""What other implementations of merging give on tiny checkpoints: numbers, in peers.safetensors.

In an environment with mergekit and PEFT, but not with Perdure,

    python tests/merging/peers.py

writes peers.safetensors again, with the versions of both and the configurations of mergekit, which
are run as `mergekit-yaml CONFIG FOLDER`, in its metadata. `test_peers.py` merges the same
checkpoints and compares. They are made from seeds by `save_checkpoint` and `save_lora`.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer


FILE = Path(__file__).with_suffix(".safetensors")
WORDS = ["<unk>", "</s>", *"abcdefghij"]  # 12 tokens
NEW = ["<|one|>", "<|two|>"]
SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
LORA = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj"]}  # of 8 x 8 each
# The seeds of the checkpoints. What all have of `common` makes their changes partly agree.
EXPERTS = {"a": 1, "b": 2, "c": 3}


def save_checkpoint(folder: Path, seed: int | None, words: tuple[str, ...] = ()) -> Path:
    """Write the base, or a checkpoint of it that has moved by drawn steps.

    The base's weights are normal numbers, drawn for the tensors in the order of their names with a
    generator of seed 0. A checkpoint adds 0.1 times numbers of seed 100, which are the same for all
    checkpoints, and 0.1 times numbers of its own seed.

    Args:
        folder: the folder.
        seed: the seed of the checkpoint, None for the base.
        words: its tokens, if they are others than the base's or in another order. Their rows are
            those of the base's tokens; those of new tokens are drawn with seed + 1000.
    """
    tokens = list(words or WORDS)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **SIZES, **HEADS))
    parts = [(1.0, 0)] if seed is None else [(1.0, 0), (0.1, 100), (0.1, seed)]
    drawn = [(scale, torch.Generator().manual_seed(number)) for scale, number in parts]
    state = {}
    for name, tensor in sorted(model.state_dict().items()):
        numbers = [scale * torch.randn(tensor.shape, generator=one) for scale, one in drawn]
        state[name] = torch.stack(numbers).sum(dim=0)
    rows = torch.Generator().manual_seed((seed or 0) + 1000)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        own = torch.randn((len(NEW), SIZES["hidden_size"]), generator=rows)
        all_rows = dict(zip([*WORDS, *NEW], torch.cat([state[name], own]), strict=True))
        state[name] = torch.stack([all_rows[token] for token in tokens])
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokens), **SIZES, **HEADS)).save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = {token: number for number, token in enumerate(tokens) if token in WORDS}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = FastTokenizer(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>")
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens if token in NEW])
    tokenizer.save_pretrained(folder)
    return folder


def save_lora(folder: Path, base: Path, seed: int) -> Path:
    """Write a LoRA adapter of the base whose factors are drawn, in the order of their names."""
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return folder


def save_all(folder: Path) -> None:
    """Write the base, the checkpoints, two with other vocabularies, and two adapters."""
    save_checkpoint(folder / "base", None)
    for name, seed in EXPERTS.items():
        save_checkpoint(folder / name, seed)
    save_checkpoint(folder / "permuted", 1, tuple(reversed(WORDS)))
    save_checkpoint(folder / "lacking", 2, (*WORDS[:5], *WORDS[6:]))
    save_checkpoint(folder / "one", 1, (*WORDS, NEW[0]))
    save_checkpoint(folder / "both", 2, (*WORDS, *NEW))
    for name, seed in (("p", 11), ("q", 12)):
        save_lora(folder / name, folder / "base", seed)


def of(names: str, **parameters: list[float]) -> list[dict[str, Any]]:
    """The models of a configuration, each with its values of the parameters."""
    models: list[dict[str, Any]] = [{"model": name} for name in names.split()]
    for key, values in parameters.items():
        for model, value in zip(models, values, strict=True):
            model.setdefault("parameters", {})[key] = value
    return models


# Perdure thins neither norms nor biases; mergekit thins them as other tensors.
THINNED = [{"filter": "norm", "value": 1.0}]
WEIGHTS = {"weight": [0.5, 1.0, 2.0]}
MERGEKIT: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": of("a b c", **WEIGHTS)},
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "models": of("a b c", weight=[0.5, -0.25, 2.0]),
        "parameters": {"lambda": 0.8, "normalize": False},
    },
    "ties": {
        "merge_method": "ties",
        "models": of("a b c", **WEIGHTS),
        "parameters": {
            "density": [*THINNED, {"value": 0.5}],
            **{"lambda": 0.8, "normalize": True, "rescale": False},
        },
    },
    "breadcrumbs": {
        "merge_method": "breadcrumbs",
        "models": of("a b c", **WEIGHTS),
        "parameters": {
            "density": [*THINNED, {"value": 0.5}],
            **{"gamma": 0.25, "normalize": False, "rescale": False},
        },
    },
    "slerp": {
        "merge_method": "slerp",
        "models": of("a b"),
        "base_model": "a",
        "parameters": {"t": 0.3},
    },
    "nuslerp": {"merge_method": "nuslerp", "models": of("a b", weight=[0.7, 0.3])},
    "model_stock": {"merge_method": "model_stock", "models": of("a b c")},
    "vocabulary base": {
        "merge_method": "task_arithmetic",
        "models": of("permuted lacking", weight=[1.0, 1.0]),
        "parameters": {"normalize": False},
        "tokenizer": {"source": "base"},
    },
    "vocabulary union": {
        "merge_method": "linear",
        "models": of("base one both c", weight=[0.0, 1.0, 1.0, 1.0]),
        "tokenizer": {"source": "union"},
    },
}
# The arguments of PEFT's add_weighted_adapter on the adapters p and q. With a rank of 8, the SVD at
# the end of each cuts nothing off.
PEFT: dict[str, dict[str, Any]] = {
    "cat": {"weights": [0.5, 2.0], "combination_type": "cat"},
    "svd": {"weights": [0.5, 2.0], "combination_type": "svd", "svd_rank": 8},
    "ties_svd": {
        "weights": [0.5, 0.5],
        **{"combination_type": "ties_svd", "density": 0.5, "svd_rank": 8},
    },
    "magnitude_prune_svd": {
        "weights": [0.5, 2.0],
        **{"combination_type": "magnitude_prune_svd", "density": 0.5, "svd_rank": 8},
    },
    "dare_linear_svd": {
        "weights": [0.5, 2.0],
        **{"combination_type": "dare_linear_svd", "density": 0.5, "svd_rank": 8},
    },
}


def by_mergekit(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of what mergekit makes of a configuration in a folder of checkpoints."""
    config = {"base_model": "base", **config, "dtype": "float32"}
    config["base_model"] = str(folder / config["base_model"])
    config["models"] = [{**one, "model": str(folder / one["model"])} for one in config["models"]]
    if config["merge_method"] == "linear" and "tokenizer" not in config:
        del config["base_model"]
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    command = shutil.which("mergekit-yaml", path=Path(sys.executable).parent) or "mergekit-yaml"
    shutil.rmtree(folder / "out", ignore_errors=True)
    done = subprocess.run([command, file, "out"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    files = sorted((folder / "out").glob("*.safetensors"))
    return {name: tensor for one in files for name, tensor in load_file(one).items()}


def by_peft(folder: Path, options: dict[str, Any]) -> dict[str, Tensor]:
    """Return the changes of weights of what PEFT makes of the adapters p and q.

    What it draws is returned as well, in the order of the draws.
    """
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model: Any = PeftModel.from_pretrained(base, folder / "p", adapter_name="p")
    model.load_adapter(folder / "q", adapter_name="q")
    draw, masks = torch.bernoulli, []
    generator = torch.Generator().manual_seed(0)

    def drawn(chances: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        masks.append(draw(chances, generator=generator))
        return masks[-1].clone()

    torch.bernoulli = drawn
    try:
        model.add_weighted_adapter(["p", "q"], adapter_name="merged", **options)
    finally:
        torch.bernoulli = draw
    changes = {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("merged")
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    found = {name: change.detach().contiguous() for name, change in sorted(changes.items())}
    return found | {f"mask {number}": mask for number, mask in enumerate(masks)}


def main() -> None:
    """Write what the peers give."""
    outputs: dict[str, Tensor] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_all(folder)
        os.environ["HF_HUB_OFFLINE"] = "1"
        for case, config in MERGEKIT.items():
            for name, tensor in by_mergekit(folder, config).items():
                outputs[f"mergekit {case}: {name}"] = tensor
        for case, options in PEFT.items():
            for name, tensor in by_peft(folder, options).items():
                outputs[f"peft {case}: {name}"] = tensor
    versions = {name: importlib.metadata.version(name) for name in ("mergekit", "peft", "torch")}
    save_file(outputs, FILE, metadata={"format": "pt", **versions})
    about = f"{FILE.name}: {len(outputs)} tensors, {FILE.stat().st_size} bytes, {versions}"
    sys.stdout.write(f"{about}\n")


if __name__ == "__main__":
    main()
