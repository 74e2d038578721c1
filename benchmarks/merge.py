"""Merges checkpoints of about 1 GB side by side with mergekit and PEFT, in one run.

    python -m venv mergekit-env && mergekit-env/bin/pip install mergekit
    python benchmarks/merge.py --mergekit mergekit-env/bin/mergekit-yaml

The models are decoders of 0.5 billion random bf16 weights: a base and three that differ from it a
little. Each pair runs ours and theirs as processes of their own, one after the other, with one
thread. A record has the median ratio of the times and of the peak memories, ours divided by theirs,
and the quartiles of the former; the peak is the process's resident memory, in which the files that
a process has mapped count, as far as they were read. `--only NAME ...` makes some records again and
keeps the others of `benchmarks/results/merge.json`; `--pairs N` is 3 if it is left out.

    average, ties, dare, slerp   `perdure merge` beside mergekit's linear, ties, dare_linear, slerp
    opcm                         the projection of one matrix beside the formula with the full SVD
    lora                         three LoRA adapters, beside PEFT's `add_weighted_adapter`; and the
                                 error of both against the sum of the products
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from perdure.merging.rules.opcm import clean
from perdure.reporting.results import device, write


RESULTS = Path(__file__).parent / "results" / "merge.json"
EXPERTS = ("first", "second", "third")
CONFIG = LlamaConfig(
    vocab_size=32000,
    hidden_size=1536,
    intermediate_size=4096,
    num_hidden_layers=16,
    num_attention_heads=12,
    num_key_value_heads=12,
    tie_word_embeddings=True,
)
# By our rule: mergekit's method, the parameters of both, and how many models it merges.
RULES: dict[str, tuple[str, dict[str, float], int]] = {
    "average": ("linear", {}, 3),
    "ties": ("ties", {"density": 0.2}, 3),
    "dare": ("dare_linear", {"density": 0.1}, 3),
    "slerp": ("slerp", {"t": 0.5}, 2),
}
MATRIX = (1024, 4096)  # of `opcm`


class Cost(NamedTuple):
    """What a process took."""

    seconds: float
    peak_mib: float


def main(mergekit: str | None, pairs: int, only: list[str]) -> None:
    """Make the records and write the result file."""
    torch.set_num_threads(1)
    earlier = json.loads(RESULTS.read_text())["records"] if only and RESULTS.exists() else []
    records = {record["name"]: record for record in earlier}
    wanted = only or [*RULES, "opcm", "lora"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        if set(wanted) & set(RULES):
            if mergekit is None:
                sys.exit(
                    "merge.py: name mergekit's command with --mergekit, or leave out its rules"
                )
            make_models()
        for name in wanted:
            if name in RULES:
                records[name] = beside_mergekit(name, mergekit or "", pairs)
            else:
                records[name] = {"opcm": beside_full_svd, "lora": beside_peft}[name](pairs)
            print(json.dumps(records[name]), flush=True)
            write(
                RESULTS,
                benchmark="merge",
                command="python benchmarks/merge.py --mergekit mergekit-env/bin/mergekit-yaml",
                device=device(1),
                records=[*records.values()],
            )


def make_models() -> None:
    """Write the base and its experts, with a tokenizer, into the working directory."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG).to(torch.bfloat16)
    save(model, "base")
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for expert in EXPERTS:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                change = 0.05 * start[name].float().std() * torch.randn(parameter.shape)
                parameter.copy_(start[name].float() + change)
        save(model, expert)


def save(model: LlamaForCausalLM, folder: str) -> None:
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(CONFIG.vocab_size - 1)} | {"<unk>": CONFIG.vocab_size - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)


# Runs a command and prints its seconds and its peak memory. The peak of a process includes that of
# the one that started it, so this is one that has imported little.
LAUNCHER = """
import resource, subprocess, sys, time
began = time.perf_counter()
with open("log", "w") as log:
    status = subprocess.run(sys.argv[1:], stdout=log, stderr=log).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(time.perf_counter() - began, peak, status)
"""


def run(command: list[str]) -> Cost:
    """Run a command with one thread; its seconds and its peak memory."""
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "RAYON")}
    launched = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, *command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **threads},
    )
    seconds, peak, status = launched.stdout.split()
    if int(status):
        sys.exit(f"merge.py: {' '.join(command)} failed:\n{Path('log').read_text()[-2000:]}")
    return Cost(float(seconds), float(peak))


def beside_mergekit(rule: str, mergekit: str, pairs: int) -> dict[str, Any]:
    """The record of a rule: `perdure merge` beside mergekit on the same models."""
    method, keywords, count = RULES[rule]
    experts = [*EXPERTS[:count]]
    settings = [f"rule.{key}={value}" for key, value in keywords.items()]
    ours = [sys.executable, "-m", "perdure", "merge", *experts, "--base", "base"]
    ours += ["--into", "merged", "--rule", rule, *settings]
    config = mergekit_config(method, keywords, experts)
    Path("config.yaml").write_text(json.dumps(config))  # JSON is YAML
    theirs = [mergekit, "config.yaml", "merged", "--quiet", "--no-write-model-card"]
    costs: dict[str, list[Cost]] = {"ours": [], "theirs": []}
    for _ in range(pairs):
        for side, command in (("ours", ours), ("theirs", theirs)):
            shutil.rmtree("merged", ignore_errors=True)
            costs[side].append(run(command))
            if side == "ours":
                written = sum(file.stat().st_size for file in Path("merged").iterdir())
                mine = weights("merged")
    difference = farthest(mine, weights("merged"))
    peaks = {side: statistics.median(c.peak_mib for c in costs[side]) for side in costs}
    read = (count + 1) * Path("base/model.safetensors").stat().st_size
    return {
        "name": rule,
        "what": f"{count} checkpoints of {read / (count + 1) / 1e9:.2f} GB, mergekit's {method}",
        **ratio([(a.seconds, b.seconds) for a, b in zip(*costs.values(), strict=True)]),
        "pairs": pairs,
        "seconds": round(statistics.median(c.seconds for c in costs["ours"]), 2),
        "peak_ratio": round(peaks["ours"] / peaks["theirs"], 3),
        "peak_mib": {side: round(peak) for side, peak in peaks.items()},
        "input_bytes": read,
        "written_bytes": written,
        "largest_difference": difference,
    }


def mergekit_config(method: str, keywords: dict[str, float], experts: list[str]) -> dict[str, Any]:
    """The same merge in the words of mergekit: computed in fp32, written in bf16."""
    config: dict[str, Any] = {"merge_method": method, "dtype": "float32", "out_dtype": "bfloat16"}
    if method == "slerp":
        first, second = experts
        models = [{"model": first}, {"model": second}]
        return {**config, "base_model": first, "models": models, "parameters": keywords}
    models = [{"model": expert, "parameters": {"weight": 1.0, **keywords}} for expert in experts]
    if method == "linear":
        return {**config, "models": models}
    # TIES divides by the weights that agree, as `normalize` does; DARE only adds.
    normalize = {"normalize": method == "ties"}
    return {**config, "base_model": "base", "models": models, "parameters": normalize}


def weights(folder: str) -> dict[str, Tensor]:
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float | None:
    """The largest relative distance of a tensor of two models; None if their names differ."""
    if a.keys() != b.keys():
        return None
    distances = [(a[n].float() - b[n].float()).norm() / b[n].float().norm() for n in a]
    return float(max(distances))


def ratio(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The median of ours divided by theirs, and the quartiles."""
    ratios = [ours / theirs for ours, theirs in pairs]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    rounded = {"ratio": statistics.median(ratios), "low": low, "high": high}
    return {key: round(value, 3) for key, value in rounded.items()}


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def full_svd(tau: Tensor, merged: Tensor, alpha: float) -> Tensor:
    """OPCM's projection as its paper writes it, with the full matrices U and V."""
    u, s, vh = torch.linalg.svd(merged, full_matrices=True)
    r = int((s.cumsum(0) / s.sum() > alpha).to(torch.int8).argmax())
    projected = u.T @ tau @ vh.T
    projected.diagonal().zero_()
    projected[:r, :r] = 0
    return u @ projected @ vh


def beside_full_svd(pairs: int) -> dict[str, Any]:
    """The record of `opcm`: one matrix."""
    generator = torch.Generator().manual_seed(0)
    tau, merged = (torch.randn(MATRIX, generator=generator) for _ in range(2))
    seconds, difference = [], 0.0
    for _ in range(pairs):
        ours, thin = timed(lambda: clean(tau, merged, 0.5))
        theirs, full = timed(lambda: full_svd(tau, merged, 0.5))
        seconds.append((ours, theirs))
        difference = max(difference, float((thin - full).norm() / full.norm()))
    return {
        "name": "opcm",
        "what": f"the projection of a {MATRIX[0]} x {MATRIX[1]} matrix, beside the full SVD",
        **ratio(seconds),
        "largest_difference": difference,
    }


def beside_peft(pairs: int) -> dict[str, Any]:
    """The record of `lora`: three adapters of rank 8 on a small decoder, merged with weight 1."""
    small = {**CONFIG.to_dict(), "num_hidden_layers": 4, "hidden_size": 768, "vocab_size": 2000}
    torch.manual_seed(0)
    save_small(LlamaForCausalLM(LlamaConfig(**small)))
    ours = [sys.executable, "-m", "perdure", "merge", *EXPERTS, "--into", "joined"]
    ours += ["--rule", "task_arithmetic"]
    costs, errors = {"ours": [], "theirs": []}, {}
    exact = deltas("small", [*EXPERTS])
    for _ in range(pairs):
        shutil.rmtree("joined", ignore_errors=True)
        costs["ours"].append(run(ours).seconds)
        for combination in ("linear", "svd"):
            began = time.perf_counter()
            theirs = combined(combination)
            if combination == "svd":
                costs["theirs"].append(time.perf_counter() - began)
            errors[f"peft_{combination}"] = error(theirs, exact)
    errors["ours"] = error(deltas("small", ["joined"]), exact)
    return {
        "name": "lora",
        "what": "three LoRA adapters of rank 8, a process of ours beside PEFT's svd in this one",
        **ratio([*zip(costs["ours"], costs["theirs"], strict=True)]),
        "errors": {name: float(f"{value:.3g}") for name, value in errors.items()},
    }


def save_small(model: LlamaForCausalLM) -> None:
    """Write a small base and three adapters of it."""
    save(model, "small")
    for seed, name in enumerate(EXPERTS):
        base = LlamaForCausalLM.from_pretrained("small")
        config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
        shutil.rmtree(name, ignore_errors=True)
        torch.manual_seed(seed)
        adapted: Any = get_peft_model(base, config)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.05 * torch.randn(parameter.shape))
        adapted.save_pretrained(name, save_embedding_layers=False)


def deltas(base: str, adapters: list[str]) -> dict[str, Tensor]:
    """The sum of what adapters add to each weight, in fp64."""
    total: dict[str, Tensor] = {}
    for name in adapters:
        model: Any = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), name)
        for key, module in model.named_modules():
            if hasattr(module, "get_delta_weight"):
                delta = delta_of(module, "default")
                total[key] = total[key] + delta if key in total else delta
    return total


def delta_of(module: Any, adapter: str) -> Tensor:
    a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    return module.scaling[adapter] * (b.detach().double() @ a.detach().double())


def combined(combination: str) -> dict[str, Tensor]:
    """What PEFT's combination of the three adapters adds to each weight."""
    base = LlamaForCausalLM.from_pretrained("small")
    model: Any = PeftModel.from_pretrained(base, EXPERTS[0], adapter_name=EXPERTS[0])
    for name in EXPERTS[1:]:
        model.load_adapter(name, adapter_name=name)
    rank = {"svd_rank": 24} if combination == "svd" else {}
    model.add_weighted_adapter(
        [*EXPERTS], [1.0] * 3, "joined", combination_type=combination, **rank
    )
    return {
        key: delta_of(module, "joined")
        for key, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def error(ours: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The relative error of all deltas together."""
    difference = sum(float((ours[k] - exact[k]).square().sum()) for k in exact)
    return (difference / sum(float(exact[k].square().sum()) for k in exact)) ** 0.5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mergekit", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    main(arguments.mergekit, arguments.pairs, arguments.only)
