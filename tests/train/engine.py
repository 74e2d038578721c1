"""A task learned by the engine on a tiny model, without a lineage around it."""

import functools
import json
import tempfile
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, TrainerCallback

from perdure.config import Config
from perdure.data.tokens import features
from perdure.methods import make
from perdure.models.base import TASK_TYPE, Base
from perdure.models.classifier import Classifier
from perdure.say import silent
from perdure.seeds import forked
from perdure.train import lifecycle
from perdure.train.arguments import training_arguments
from perdure.train.checkpoints import last_checkpoint
from perdure.train.dev import DevEvaluation, DevRows
from perdure.train.dev_settings import DevSettings
from perdure.train.memory import Memory
from perdure.train.method import TaskContext
from perdure.train.trainer import ContinualTrainer
from tiny import tiny_model, tiny_rows, tiny_tokenizer


STRICT = {"weight_decay": 0.1, "max_grad_norm": 0.5, "learning_rate": 1e-2}
TARGETS = {"causal": ["q_proj", "v_proj"], "seq2seq": ["q", "v"], "encoder": ["query", "value"]}


def whole(method) -> bool:
    """Whether a method of the list works on whole weights alone."""
    return any(m.needs == "whole" for m in make(method))


def tiny_base(kind: str, dropout: float = 0.0, whole: bool = False) -> Base:
    """LoRA with B drawn at random as well, as after a first task, so that no gradient is zero.

    Or the `whole` weights, without an adapter.
    """
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=dropout,
        target_modules=TARGETS[kind],
        task_type=TASK_TYPE[kind],
    )
    with forked(0):
        model = tiny_model(kind)
        model = model if whole else get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    if kind == "encoder":
        model = Classifier(model, 32)
        model.grow(("bird", "blue", "cat", "dog", "green", "red"), seed=0)
    return Base("tiny", kind, model, tiny_tokenizer(kind))  # type: ignore[arg-type]


def odd_base(whole: bool) -> Base:
    """A Llama with tied embeddings and biases, in bf16 below its LoRA; `whole` weights are fp32."""
    config = tiny_model("causal").config
    config.update({"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True})
    with forked(0):
        model = LlamaForCausalLM(config)
        if not whole:
            settings = LoraConfig(r=4, target_modules=TARGETS["causal"], task_type="CAUSAL_LM")
            model = get_peft_model(model.to(torch.bfloat16), settings)
    return Base("odd", "causal", model, tiny_tokenizer("causal"))


def tokenized(base: Base, mapping: str, n: int = 40) -> list[dict]:
    limits = (64, 8)
    rows = tiny_rows(mapping, n)
    return features(rows, base.tokenizer, base.kind, *limits, base.labels, mapping)[0]


class Stopped(Exception):  # noqa: N818
    """What `Stop` raises."""


class Stop(TrainerCallback):
    """The power goes before optimizer step number `step` + 1 of a task, by number from 1."""

    def __init__(self, step: int, task: int = 1):
        self.step, self.task, self.tasks = step, task, 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.tasks += 1

    def on_step_begin(self, args, state, control, **kwargs):
        if self.tasks == self.task and state.global_step == self.step:
            raise Stopped


def engine(
    base: Base,
    method,
    work: Path,
    memory: int = 6,
    rows: int = 40,
    resume=None,
    callbacks=(),
    dev=None,
    **training,
) -> ContinualTrainer:
    """An engine that will learn `rows` rows of colour, with `memory` rows of animal kept.

    With memory it is the second task, and methods have the state that a first one left. `dev`
    measures dev rows, as the keys of `training` say.
    """
    methods = make(method)
    every = training.pop("checkpoint_every", 0)
    remembered = {"animal": tokenized(base, "animal", memory)} if memory else {}
    states = first_stage(base.kind, json.dumps(method)) if memory else {}
    arguments = {"per_device_train_batch_size": 4, "num_train_epochs": 1, **STRICT, **training}
    args = training_arguments(arguments, work, 7, every)
    for m in methods:
        m.check(Config(adapter=None if base.whole else {"r": 4}), base.kind)

    def context(method) -> TaskContext:
        state = {name: t.clone() for name, t in states.get(method.name, {}).items()}  # it is cached
        return TaskContext("colour", 1 + bool(memory), 3, Memory(remembered, 5), state)

    base.model = lifecycle.begin_task(methods, base.model, context)
    features = tokenized(base, "colour", rows)
    return ContinualTrainer(base, methods, features, args, callbacks, resume, dev=dev)


def dev_of(base, say=silent, rows: int = 12, **settings) -> DevEvaluation:
    """What measures rows that the task of `train.engine` does not learn."""
    features = tokenized(base, "colour", 60)[-rows:]
    return DevEvaluation("colour", DevRows(features, lambda: 0.5), DevSettings(**settings), say)


def scripted(dev: DevEvaluation, losses: dict[int, float]) -> DevEvaluation:
    """`dev`, but its losses are those of `losses`, by step."""
    dev._loss = lambda: losses[dev.engine.state.global_step]  # type: ignore[method-assign]
    return dev


@functools.cache
def first_stage(kind: str, method: str) -> dict[str, dict[str, torch.Tensor]]:
    """What the methods store after a first task, animal, by their names."""
    base = tiny_base(kind, whole=whole(json.loads(method)))
    with tempfile.TemporaryDirectory() as work:
        trainer = engine(base, json.loads(method), Path(work), memory=0, rows=12)
        trainer.train_dataset = tokenized(base, "animal", 12)  # type: ignore[assignment]
        trainer.learn()
    lifecycle.end_task(trainer.methods, base.model)
    return {m.name: m.state_dict() for m in trainer.methods}


def weights(base: Base) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in base.model.named_parameters() if p.requires_grad}


def learned(kind: str, method, work: Path, dropout: float = 0.1, **settings):
    """The trained weights after one task, and the engine."""
    base = tiny_base(kind, dropout, whole(method))
    trainer = engine(base, method, work, **settings)
    trainer.learn()
    return weights(base), trainer


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def stopped_and_resumed(
    kind: str, method, work: Path, at: int, every: int, dropout: float = 0.1, **settings
):
    """As `learned`, but the run dies before step `at` + 1 and another one goes on."""
    base = tiny_base(kind, dropout, whole(method))
    dead = engine(base, method, work, callbacks=[Stop(at)], checkpoint_every=every, **settings)
    with pytest.raises(Stopped):
        dead.learn()
    checkpoint = last_checkpoint(work)
    assert checkpoint is not None
    assert checkpoint.name == f"checkpoint-{at // every * every}"
    return learned(
        kind, method, work, dropout, resume=checkpoint, checkpoint_every=every, **settings
    )
