"""Measures the memory of Recurrent-KIF on all weights of a model, and its functions on more.

    python benchmarks/full_weights.py [--weights N ...]

Linux only. A record of `peak` is the peak memory of a training on the decoder of `speed.py`, about
30 M parameters in fp32 with AdamW and 64 tokens a step, in a process of its own: the most resident
memory between the first and the last step, less that of the process before it loads the model. So
imports do not count; weights, gradients, moments and activations do.

A record of `functions` scores, masks and fuses N random weights without a model, in fp32 or, from
a billion on, with weights, gradients and `states` in bf16. `held_mb` is the memory of all buffers,
and `extra_mb` the most resident memory in addition to it, which does not depend on N.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import architectures
import torch
from speed import DECODER, Clock, rows_of, training, workplace
from transformers import logging

from perdure import api
from perdure.methods.recurrent_kif.presets import RECURRENT_KIF
from perdure.methods.recurrent_kif.rounds import Rounds, table_of
from perdure.reporting.results import device, write


RESULTS = Path(__file__).parent / "results" / "full_weights.json"
METHODS: dict[str, Any] = {
    "sequential": "sequential",
    "recurrent_kif": "recurrent_kif",
    "states: bfloat16": {"recurrent_kif": {"states": "bfloat16"}},
    "states: bfloat16, outer_optimizer: shared": {
        "recurrent_kif": {"states": "bfloat16", "outer_optimizer": "shared"}
    },
}
ROWS = rows_of(["red " * 10 + "cat dog"] * 32, ["one two"] * 32)
WEIGHTS = (100_000_000, 300_000_000, 1_000_000_000)
IN_HALF = 1_000_000_000  # from so many weights on, all but the start of a round is in bf16
TENSOR = 10_000_000  # weights of a tensor
MB = 2**20


def status(key: str) -> int:
    """A value of /proc/self/status in bytes: `VmRSS` now, or `VmHWM`, the most since `reset`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key + ":")) * 1024


def reset() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class Peak(Clock):
    """Records the most resident memory of a training."""

    peak = 0

    def on_train_begin(self, args, state, control, **kwargs):
        reset()

    def on_train_end(self, args, state, control, **kwargs):
        self.peak = status("VmHWM")


def settings(method: Any) -> dict[str, Any]:
    return {
        "base": str(Path("decoder").resolve()),
        "method": method,
        "adapter": None,
        "guard": False,
        "memory": {"ratio": 0.5},
        "training": training(4, steps=17),
        "threads": 1,
    }


def learn(name: str, task: str) -> None:
    """Learn a task in this process, and print the peak memory in bytes."""
    before, peak = status("VmRSS"), Peak()
    api.learn(name, task, train=ROWS, callbacks=[peak])
    print(peak.peak - before)


def in_a_process(*arguments: str) -> str:
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def peaks() -> list[dict[str, Any]]:
    """Records of the peak memory of a second task, relative to plain training."""
    architectures.make("llama", Path("decoder"), **DECODER)
    records: list[dict[str, Any]] = []
    for i, (name, method) in enumerate(METHODS.items()):
        api.init(f"lineage-{i}", config=settings(method))
        in_a_process("--learn", f"lineage-{i}", "first")
        peak = int(in_a_process("--learn", f"lineage-{i}", "second").split()[-1])
        plain = records[0]["peak_mb"] * MB if records else peak
        record = {"what": "peak", "name": name, "peak_mb": round(peak / MB, 1)}
        records.append(record | {"ratio": round(peak / plain, 3)})
        print(records[-1], flush=True)
    return records


def functions(n: int) -> dict[str, Any]:
    """A record of one round of two scores and a fusion on n weights."""
    count, dtype = n // TENSOR, torch.bfloat16 if n >= IN_HALF else torch.float32
    parameters = [torch.nn.Parameter(torch.randn(TENSOR, dtype=dtype)) for _ in range(count)]
    for parameter in parameters:
        parameter.grad = torch.randn(TENSOR, dtype=dtype)
    table = table_of(RECURRENT_KIF["paper"]["fusion"])
    rounds = Rounds(
        parameters, table, "sensitivity", quantile=0.8, beta_uncertainty=0.55, states=dtype
    )
    parts = {
        "score": lambda: (rounds.observe(rounds.inner, 0.55), rounds.observe(rounds.outer, 0.55)),
        "mask": rounds.end_inner_steps,
        "fuse": rounds.fuse,
    }
    for buffer in (*rounds.inner, *rounds.outer, *rounds.inner_masks):
        if buffer is not None:
            buffer.zero_()  # touches its memory
    reset()
    before, seconds = status("VmRSS"), {}
    for name, part in parts.items():
        began = time.perf_counter()
        part()
        seconds[name] = (time.perf_counter() - began) / n * 1e9 / (2 if name == "score" else 1)
    times = {f"{name}_ns_per_weight": round(value, 2) for name, value in seconds.items()}
    extra = (status("VmHWM") - before) / MB
    about = {"n": count * TENSOR, "dtype": str(dtype).removeprefix("torch.")}
    memory = {"held_mb": round(before / MB), "extra_mb": round(extra, 1)}
    return {"what": "functions", **about, **memory, **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", nargs="*", type=int, default=list(WEIGHTS))
    parser.add_argument("--learn", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--functions", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if arguments.learn:
        learn(*arguments.learn)
    elif arguments.functions:
        print(json.dumps(functions(arguments.functions)))
    else:
        with workplace():
            records = peaks()
        for n in arguments.weights:
            records.append(json.loads(in_a_process("--functions", str(n)).splitlines()[-1]))
            print(records[-1], flush=True)
        command = "python benchmarks/full_weights.py"
        write(RESULTS, "full_weights", command, device(1), records)


if __name__ == "__main__":
    main()
