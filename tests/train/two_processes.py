"""Run by test_processes.py, alone and in two processes: learn a task, keep the weights."""

import os
import sys
from pathlib import Path

import torch
from engine import engine, tiny_base, weights
from safetensors.torch import save_file


torch.set_num_threads(1)
ROUNDS = {"inner_steps": 4, "outer_steps": 2}
METHODS = ("sequential", "agem", {"replay": {"ratio": 0.5}}, {"recurrent_kif": ROUNDS})

if __name__ == "__main__":
    out, processes = Path(sys.argv[1]), int(os.environ.get("WORLD_SIZE", 1))
    backend = {"ddp_backend": "gloo"} if processes > 1 else {}
    for kind in ("causal", "seq2seq", "encoder"):
        for method in METHODS:
            base = tiny_base(kind)
            made = engine(
                base,
                method,
                out / "work",
                rows=24,
                per_device_train_batch_size=4 // processes,
                **backend,
            )
            made.learn()
            if os.environ.get("RANK", "0") == "0":
                name = method if isinstance(method, str) else next(iter(method))
                save_file(weights(base), out / f"{kind}-{name}.safetensors")
    if processes > 1:  # together, or the one that ends first takes the other's connection away
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
