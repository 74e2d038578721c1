"""Run by test_processes.py in two processes: train what is named, keep the weights of each rank."""

import gc
import json
import os
import sys
import threading
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

import perdure
from methods.recurrent_kif.plain_trainer import base_of, kif_callback, plain_trainer, trained
from perdure.lineage.files import locked
from perdure.methods.shared.importance import quantile_threshold
from perdure.models.sharded import Shards
from perdure.processes import WATCHER
from train.engine import dev_of, engine, scripted, tiny_base, weights
from train.sharded_on_cpu import shard_on_the_cpu


ROUNDS = {"inner_steps": 4, "outer_steps": 2}
METHODS = {
    "sequential": "sequential",
    "agem": "agem",
    "replay": {"replay": {"ratio": 0.5}},
    "recurrent_kif": {"recurrent_kif": ROUNDS},
    "grouped": {"replay": {"ratio": 0.5}},  # rows of one length in a batch
    "best": {"recurrent_kif": ROUNDS},  # goes back to the best of two measurements on dev rows
}
THRESHOLD = "threshold"
SCORES = torch.arange(1000, dtype=torch.float32).roll(123).sqrt()  # all different
DEV_LOSSES = {4: 1.0, 6: 2.0}
# What `perdure.run` learns of two tasks: the kind of weights and the method.
LINEAGE_METHODS: dict[str, Any] = {
    "replay": {"replay": {"ratio": 0.5}},
    "recurrent_kif": {"recurrent_kif": {"inner_steps": 2, "outer_steps": 1}},
    "ewc": {"ewc": {"rows": 4}},
    "lwf": "lwf",
    "kl_base": "kl_base",
    "l2": "l2",
    "mas": {"mas": {"rows": 4}},
    "sequential": "sequential",
}


def learned(name: str, work: Path, processes: int = 1) -> dict[str, torch.Tensor]:
    """The weights that the engine ends in: `name` is a kind and a method, as in `causal-replay`."""
    kind, method = name.split("-")
    base = tiny_base(kind)
    training = {"rows": 24, "per_device_train_batch_size": 4 // processes, **backend(processes)}
    if method == "grouped":
        training |= {"train_sampling_strategy": "group_by_length"}
    if method == "best":
        training |= {"dev": dev_of(base, keep_best=True), "eval_steps": 4}
    trainer = engine(base, METHODS[method], work, **training)
    for i, row in enumerate(trainer.train_dataset if method == "grouped" else ()):
        row["input_ids"] = [*row["input_ids"], *[5] * (i % 7)]
        if kind != "encoder":
            row["labels"] = [*row["labels"], *[5] * (i % 7)]
    if trainer.dev:
        trainer.dev.measure(0)  # the real loss, on every process
        scripted(trainer.dev, DEV_LOSSES)
    trainer.learn()
    assert trainer.dev is None or trainer.dev.weights_of == 4
    return weights(base)


def in_another_trainer(work: Path, processes: int = 1) -> dict[str, torch.Tensor]:
    """The weights that transformers' own Trainer ends in, with Recurrent-KIF as its callback."""
    base = base_of("causal", 0.0)
    training = {"per_device_train_batch_size": 4 // processes, **backend(processes)}
    plain_trainer(base, work, kif_callback("causal", **ROUNDS), **training).train()
    return trained(base.model)


def lineage_learned(name: str, folder: Path, processes: int = 1, **more: Any) -> perdure.Lineage:
    """Learn a lineage in `folder`, whose name says of which weights and by which method.

    `setting.json` in the folder above has the base and the tasks.
    """
    kind, method = name.split("-")
    setting = json.loads((folder.parent / "setting.json").read_text())
    setting["training"] |= {"per_device_train_batch_size": 8 // processes}
    setting["adapter"] = None if kind == "whole" else {"r": 2, "lora_dropout": 0.0}
    setting |= {"method": LINEAGE_METHODS[method], "lineage": str(folder)}
    return perdure.run({**setting, "checkpoint_every": 1}, **more)


def line_if_locked(folder: Path) -> str:
    """The error line of this process if the lineage is locked, which only the main one can see."""
    with locked(folder) if os.environ["RANK"] == "0" else nullcontext():
        try:
            perdure.learn(folder, "new", [{"prompt": "a", "completion": "b"}])
        except perdure.PerdureError as error:
            return str(error)
    return ""


def threshold_of_parts() -> float:
    """The threshold that this process finds of SCORES, of which it has a part."""
    shards = Shards(())
    shards.are_many = True
    part = SCORES[:100] if os.environ["RANK"] == "0" else SCORES[100:]
    return quantile_threshold(part, 0.8, shards).item()


class Breaks(TrainerCallback):
    """Ends the training at the second step of the second task, as a fault of a machine would."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2 and Path(args.output_dir).name.startswith("0002"):
            raise OSError("broken")


def backend(processes: int) -> dict[str, str]:
    return {"ddp_backend": "gloo"} if processes > 1 else {}


if __name__ == "__main__":
    source = Path(__file__).parents[2] / "src"
    assert Path(perdure.__file__).is_relative_to(source), "this is not the package under test"
    torch.set_num_threads(1)
    gc.freeze()  # the Trainer collects garbage after each training: not over all that is imported
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    for name in names:
        work = folder / "work"
        if name.startswith("lineage-"):
            lineage_learned(name.removeprefix("lineage-"), folder / name, 2)
            continue
        if name.startswith("sharded-"):
            if name.endswith(THRESHOLD):
                threshold = threshold_of_parts()
                (folder / f"{name}-{os.environ['RANK']}.txt").write_text(str(threshold))
                continue
            shard_on_the_cpu()
            lineage_learned(name.removeprefix("sharded-"), folder / name, 2)
            continue
        if name.startswith("stopped-"):
            with suppress(OSError, SystemExit):
                method = name.removeprefix("stopped-")
                lineage_learned(method, folder / name, 2, callbacks=[Breaks()])
            line = line_if_locked(folder / name)
            (folder / f"{name}-{os.environ['RANK']}.txt").write_text(line)
            continue
        final = in_another_trainer(work, 2) if name == "callback" else learned(name, work, 2)
        save_file(final, folder / f"{name}-{os.environ['RANK']}.safetensors")
    # It would ask for the main process while the interpreter ends, which aborts the process.
    assert WATCHER not in [thread.name for thread in threading.enumerate()]
    torch.distributed.barrier()  # or the one that ends first takes the other's connection away
    torch.distributed.destroy_process_group()
