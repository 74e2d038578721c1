"""Recurrent-KIF as a callback of another Trainer: what the engine would do for it is done here."""

import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.data import IterableDataset
from transformers import TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from engram.data.tokens import Kind
from engram.errors import EngramError
from engram.methods.recurrent_kif.another_trainer_memory import features_by_task, is_sft
from engram.methods.shared.importance import flatten, write_back
from engram.seeds import derive, forked
from engram.train.memory import Memory
from engram.train.method import Method, TaskContext
from engram.train.step import accumulate, clip_and_step, task_loss
from engram.train.trainer import STATE, load_state, save_state


Batch = dict[str, Any]
CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
INSIDE = ("lomo", "layerwise")  # in the name of an optimizer that steps inside backward


class Host:
    """The `Steps` protocol over the arguments of a callback's events.

    Under several processes every one of them takes the same steps on the same rows, so that the
    weights stay equal without a word between them.

    Args:
        args: the Trainer's.
        model: the Trainer's, not wrapped.
        collate: features to a batch, the Trainer's own.
        kind: how the loss reads the labels of a batch.
    """

    name = "host"  # of its tensors in a checkpoint

    def __init__(
        self,
        args: TrainingArguments,
        model: nn.Module,
        collate: Callable[[list[dict[str, Any]]], Batch],
        kind: Kind,
    ):
        self.args, self.model, self.collate = args, model, collate
        self.kind: Kind = kind
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.heard = [torch.zeros_like(p) for p in self.parameters]
        self.hearing = True
        self.hooks = [
            p.register_post_accumulate_grad_hook(partial(self._hear, at=at))
            for at, p in enumerate(self.parameters)
        ]

    def close(self) -> None:
        while self.hooks:
            self.hooks.pop().remove()
        self.heard = []

    # --- gradients of the Trainer's own step

    def _hear(self, parameter: Tensor, at: int) -> None:
        """After each micro-batch; what the last one of a step leaves is the whole gradient."""
        if self.hearing:
            assert parameter.grad is not None
            self.heard[at].copy_(parameter.grad)

    @contextmanager
    def complete_gradients(self) -> Iterator[None]:
        """`.grad` as it was before clipping, of all processes; then as the Trainer has it again."""
        if self.args.world_size > 1:  # a hook comes before the processes have shared theirs
            flat = flatten(self.heard)
            torch.distributed.all_reduce(flat)
            write_back(flat / self.args.world_size, self.heard)
        clipped = [p.grad for p in self.parameters]
        self._put(self.heard)
        yield
        self._put(clipped)
        torch._foreach_zero_(self.heard)  # pyright: ignore[reportPrivateImportUsage]

    def _put(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    # --- steps on other rows

    def fit_step(
        self,
        rows: list[dict[str, Any]],
        optimizer: Optimizer,
        seed: int,
        inspect: Callable[[], Any] = lambda: None,
    ) -> None:
        self._backward(rows, seed)
        inspect()
        clip_and_step(self.parameters, optimizer, self.args.max_grad_norm)

    def _backward(self, rows: list[dict[str, Any]], seed: int) -> None:
        size = self.args.per_device_train_batch_size
        self.model.train()
        self.hearing = False
        accumulate(rows, seed, size, self.collate, self.kind, self._backward_one)
        self.hearing = True

    def _backward_one(self, batch: Batch, items: Tensor) -> None:
        batch = for_model(batch, self.args)
        loss, _ = task_loss(self.model, self.model, batch, self.kind, items.to(self.args.device))
        loss.backward()

    # --- what a checkpoint says of the weights beside it

    def state_dict(self) -> dict[str, Tensor]:
        """The sha256 of the trainable weights, as bytes."""
        digest = hashlib.sha256()
        for parameter in self.parameters:
            digest.update(parameter.detach().float().cpu().contiguous().numpy().data)
        return {"weights": torch.tensor(list(digest.digest()), dtype=torch.uint8)}


def for_model(batch: Batch, args: TrainingArguments) -> Batch:
    """A batch of the collator's as the model takes it."""
    moved: Batch = send_to_device(dict(batch), args.device)
    if "position_ids" in moved and "attention_mask" not in moved:
        moved["use_cache"] = False  # with a cache, rows laid end to end would see each other
    return moved


class CallbackMethod(Method):
    """A method that also works as `callbacks=[...]` of any Trainer, with the memory it is given.

    In Engram's engine the context and the engine are there before training begins, and nothing here
    does anything. Elsewhere it does for the method what that engine would. A subclass calls
    `set_up` first in its `on_train_begin`, and `resume` last.
    """

    given: Any = None  # the memory, as the user gave it

    @property
    def host(self) -> Host | None:
        engine = getattr(self, "engine", None)
        return engine if isinstance(engine, Host) else None

    def set_up(
        self,
        args: TrainingArguments,
        state: Any,
        model: Any = None,
        train_dataloader: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Make what Engram's engine would have made before training.

        Raises:
            EngramError: the memory, the model or the Trainer's arguments are not for it.
        """
        if hasattr(self, "engine") and not self.host:
            return
        self.tear_down()  # an earlier training that did not end
        trained, collate = train_dataloader.dataset, train_dataloader.collate_fn
        tasks = features_by_task(self.given, args, trained, processing_class, self.name)
        memory = Memory(tasks, derive(args.seed, "memory"))
        self.begin_task(model, TaskContext("", 0, derive(args.seed, self.name), memory, {}))
        rows = memory.draw(0, 1) if memory else []
        if not memory and excess(args) > 1 and not isinstance(trained, IterableDataset):
            rows = [trained[0]] if hasattr(trained, "__getitem__") else []
        with forked(0):  # a collator may draw
            batch = dict(collate(rows)) if rows else {}
        warn_if_mis_scaled(args, model, batch, self.name)
        if memory:
            check_host(args, state, model, self.name)
            kind = kind_of_batch(model, batch, self.name)
            self.engine = Host(args, model, collate, kind)  # type: ignore[assignment]  # its Steps

    def resume(self, args: TrainingArguments, state: Any) -> None:
        """Take up the state of the checkpoint that the Trainer resumes from.

        Raises:
            EngramError: it is not there, or belongs to other weights.
        """
        if not self.host or not state.global_step:
            return
        folder = checkpoint(args, state)
        if not (folder / STATE).exists():
            raise EngramError(
                f"{self.name}: cannot resume at step {state.global_step}: {folder / STATE} is "
                "missing; resume from a checkpoint saved with this callback, under its output_dir"
            )
        if not torch.equal(
            load_state(self.host, folder)["weights"], self.host.state_dict()["weights"]
        ):
            raise EngramError(
                f"{self.name}: cannot resume at step {state.global_step}: {folder / STATE} belongs "
                "to other weights; set output_dir to that of the run that saved the checkpoint"
            )
        self.load_state_dict(load_state(self, folder))

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.host:
            with self.host.complete_gradients():
                self.edit_gradients(model)  # type: ignore[arg-type]

    def on_save(self, args, state, control, **kwargs):
        if self.host and args.should_save:
            save_state([self, self.host], checkpoint(args, state))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.host:
            self.end_task(model)  # type: ignore[arg-type]
            self.tear_down()

    def tear_down(self) -> None:
        if self.host:
            self.host.close()
            del self.engine


def checkpoint(args: TrainingArguments, state: Any) -> Path:
    """The folder that a Trainer saves in, and resumes from, at this step."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def check_host(args: TrainingArguments, state: Any, model: nn.Module, where: str) -> None:
    """Refuse settings under which a callback does not see whole weights or true gradients.

    Raises:
        EngramError: with the way out.
    """
    accelerator = AcceleratorState()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optim = str(getattr(args.optim, "value", args.optim))
    sharded = accelerator.distributed_type in ("FSDP", "DEEPSPEED", "MEGATRON_LM")
    faults = {
        "fp16, whose gradients are scaled; use bf16": accelerator.mixed_precision == "fp16",
        "sharded weights (FSDP, DeepSpeed, tensor parallel); train on one GPU or with DDP": (
            sharded or any(isinstance(p, DTensor) for p in parameters)
        ),
        "weights on several devices; load the model without device_map, or on one device": (
            len({p.device for p in parameters}) > 1
        ),
        f"optim={optim}, which steps inside backward; use adamw_torch": any(
            name in optim for name in INSIDE
        ),
        "learning_rate 0, which has no schedule; set it above 0": not args.learning_rate,
        "a hyperparameter search; train with settings that are found": state.is_hyper_param_search,
    }
    for fault, found in faults.items():
        if found:
            raise EngramError(f"{where}: this Trainer has {fault}")


def kind_of_batch(model: nn.Module, batch: dict[str, Any], where: str) -> Kind:
    """How the loss of a model reads the labels of a batch.

    Raises:
        EngramError: it is not cross-entropy over next tokens, target tokens or classes.
    """
    bare = _bare(model)
    labels, config = batch.get("labels"), getattr(bare, "config", None)
    if isinstance(labels, Tensor) and not labels.is_floating_point() and config is not None:
        if labels.dim() == 1:
            return "encoder"
        if config.is_encoder_decoder:
            return "seq2seq"
        named = any(c.__name__ in CAUSAL for c in type(bare).__mro__)
        if named or getattr(bare, "loss_type", None) == "ForCausalLM":
            return "causal"
    raise EngramError(
        f"{where}: cannot rehearse with {type(bare).__name__} and these features; it takes causal "
        "LMs, encoder-decoders and single-label classifiers, and features that have labels"
    )


def excess(args: TrainingArguments) -> int:
    """How many times too large a gradient is that a mis-scaling Trainer makes."""
    processes = max(args.world_size, args.n_gpu) if args.average_tokens_across_devices else 1
    return args.gradient_accumulation_steps * processes


@torch.no_grad()
def warn_if_mis_scaled(
    args: TrainingArguments, model: nn.Module, batch: dict[str, Any], where: str
) -> None:
    """Warn of a model that takes `num_items_in_batch`, and ignores it.

    The Trainer then takes its loss for one over the whole accumulated batch and adds up means where
    it should divide. Found by trying: the loss must depend on the number.
    """
    bare = _bare(model)
    parameters = inspect.signature(type(bare).forward).parameters.values()
    swallows = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    asked = "labels" in batch and getattr(bare, "accepts_loss_kwargs", swallows)
    if excess(args) == 1 or not asked or is_sft(args) or args.label_smoothing_factor:
        return
    training, batch = model.training, for_model(batch, args)
    model.eval()
    numbers = torch.tensor([1, 2], device=args.device)
    outputs = [model(**batch, num_items_in_batch=number) for number in numbers]
    model.train(training)
    one, two = (made["loss"] if isinstance(made, dict) else made[0] for made in outputs)
    if torch.equal(one, two):
        warnings.warn(
            f"{where}: {type(bare).__name__} ignores num_items_in_batch, so the gradients of this "
            f"Trainer are {excess(args)} times too large; train without gradient accumulation, or "
            "set trainer.model_accepts_loss_kwargs = False",
            stacklevel=2,
        )


def _bare(model: Any) -> Any:
    """Without PEFT around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
