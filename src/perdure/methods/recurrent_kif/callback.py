"""Recurrent-KIF as a callback of any `transformers.Trainer`, without Perdure's engine.

Perdure's engine calls a method's hooks, gives it complete gradients and takes its steps on memory.
Other Trainers do none of this. `StandaloneMethod` calls the hooks from the events of
`transformers.TrainerCallback`, and `CallbackSteps` takes the steps and records the gradients.
"""

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
from torch.optim import Optimizer
from torch.utils.data import IterableDataset
from transformers import TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from perdure.errors import PerdureError
from perdure.methods.recurrent_kif.callback_memory import features_by_task, is_sft
from perdure.methods.shared.importance import CHUNK, pieces_of, read, write
from perdure.models.kinds import Kind
from perdure.models.layout import METHOD_STATE
from perdure.models.sharded import is_sharded
from perdure.seeds import derive, forked
from perdure.train.memory import Memory
from perdure.train.method import Method, TaskContext
from perdure.train.step import accumulate, clip_and_step, task_loss
from perdure.train.trainer import load_state, save_state


Batch = dict[str, Any]
CAUSAL = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
# Parts of the names of optimizers that step inside the backward pass.
STEPS_IN_BACKWARD = ("lomo", "layerwise")


class CallbackSteps:
    """Gives a callback what otherwise only Perdure's engine has (`train.method.Steps`).

    This is a way to take steps on rows that are not the Trainer's (`fit_step`), and the gradients
    of the Trainer's own step before they are clipped (`complete_gradients`). Callbacks are called
    when the gradients are already clipped, so hooks copy them when they are accumulated.

    With several processes, each one takes the same steps on the same rows, so the weights stay
    equal without communication.

    Args:
        args: the Trainer's arguments.
        model: the Trainer's model, not wrapped for distributed training.
        collate: the Trainer's own collator, which makes a batch of features.
        kind: the kind of model, which determines how the loss uses the labels.
    """

    name = "callback"  # the prefix of its tensors in a checkpoint

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
        self.unclipped = [torch.zeros_like(p) for p in self.parameters]
        self.recording = True
        self.hooks = [
            p.register_post_accumulate_grad_hook(partial(self._record, index=index))
            for index, p in enumerate(self.parameters)
        ]

    def close(self) -> None:
        """Remove the hooks from the model's parameters."""
        while self.hooks:
            self.hooks.pop().remove()
        self.unclipped = []

    # --- gradients of the Trainer's own step

    def _record(self, parameter: Tensor, index: int) -> None:
        """Copy a gradient after each micro-batch; after the last one of a step, it is complete."""
        if self.recording:
            assert parameter.grad is not None
            self.unclipped[index].copy_(parameter.grad)

    @contextmanager
    def complete_gradients(self) -> Iterator[None]:
        """A context in which `.grad` is the gradient before clipping, averaged over processes."""
        if self.args.world_size > 1:  # the hooks run before DDP averages over the processes
            pieces = pieces_of(self.unclipped, CHUNK)
            buffer = torch.empty(pieces[0].place.stop, device=self.args.device)
            for piece in pieces:
                values = read(self.unclipped, piece, buffer)
                torch.distributed.all_reduce(values)
                write(values / self.args.world_size, self.unclipped, piece)
        clipped = [p.grad for p in self.parameters]
        self._set_gradients(self.unclipped)
        yield
        self._set_gradients(clipped)
        torch._foreach_zero_(self.unclipped)  # pyright: ignore[reportPrivateImportUsage]

    def _set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    # --- steps on other rows

    def fit_step(
        self,
        rows: list[dict[str, Any]],
        optimizer: Optimizer,
        seed: int,
        inspect: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        """As `ContinualTrainer.fit_step`: backward, `inspect`, clip, step."""
        self._backward(rows, seed)
        norm = inspect()
        clip_and_step(self.parameters, optimizer, self.args.max_grad_norm, norm=norm)

    def _backward(self, rows: list[dict[str, Any]], seed: int) -> None:
        self.model.train()
        self.recording = False
        accumulate(
            rows,
            seed,
            size=self.args.per_device_train_batch_size,
            collate=self.collate,
            kind=self.kind,
            backward=self._backward_batch,
        )
        self.recording = True

    def _backward_batch(self, batch: Batch, items: Tensor) -> None:
        batch = for_model(batch, self.args)
        loss, _ = task_loss(
            self.model,
            bare=self.model,
            inputs=batch,
            kind=self.kind,
            num_items=items.to(self.args.device),
        )
        loss.backward()

    # --- a checkpoint names the weights that it belongs to

    def state_dict(self) -> dict[str, Tensor]:
        """The SHA-256 of the trainable weights, as bytes."""
        digest = hashlib.sha256()
        for parameter in self.parameters:
            digest.update(parameter.detach().float().cpu().contiguous().numpy().data)
        return {"weights": torch.tensor(list(digest.digest()), dtype=torch.uint8)}


def for_model(batch: Batch, args: TrainingArguments) -> Batch:
    """A collated batch, moved to the device, with the inputs that the model needs."""
    inputs: Batch = send_to_device(dict(batch), args.device)
    if "position_ids" in inputs and "attention_mask" not in inputs:
        # With a cache, rows that are packed end to end would attend to each other.
        inputs["use_cache"] = False
    return inputs


class StandaloneMethod(Method):
    """A method that can also be used alone, as `callbacks=[method]` of any Trainer.

    In Perdure's engine, the task's context and the engine exist before training begins, and the
    events below do nothing. In another Trainer they do what the engine would do. A subclass calls
    `set_up` at the start of its `on_train_begin`, and `resume` at its end.

    `memory_rows` is the memory that the user passed to the constructor: a dataset, or a mapping of
    task names to datasets. It is None in Perdure's engine, which has its own memory.
    """

    memory_rows: Any = None

    @property
    def steps(self) -> CallbackSteps | None:
        """The replacement of the engine in another Trainer; None in Perdure's own engine."""
        engine = getattr(self, "engine", None)
        return engine if isinstance(engine, CallbackSteps) else None

    def set_up(
        self,
        args: TrainingArguments,
        state: Any,
        model: Any = None,
        train_dataloader: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Create the task's context and the replacement of the engine.

        Raises:
            PerdureError: the memory, the model or the Trainer's arguments do not fit the method.
        """
        if hasattr(self, "engine") and not self.steps:
            return  # the method is used in Perdure's engine
        self.tear_down()  # an earlier training may have been interrupted
        train_dataset, collate = train_dataloader.dataset, train_dataloader.collate_fn
        tasks = features_by_task(
            self.memory_rows, args, train_dataset, tokenizer=processing_class, where=self.name
        )
        memory = Memory(tasks, derive(args.seed, "memory"))
        seed = derive(args.seed, self.name)
        self.begin_task(model, TaskContext(task="", stage=0, seed=seed, memory=memory, state={}))
        rows = memory.draw(0, 1) if memory else []
        if not memory and gradient_excess(args) > 1:
            rows = first_row(train_dataset)
        with forked(0):  # a collator may draw random numbers
            batch = dict(collate(rows)) if rows else {}
        warn_if_mis_scaled(args, model, batch, self.name)
        if memory:
            check_trainer(args, state, model, self.name)
            kind = kind_of_batch(model, batch, self.name)
            self.engine = CallbackSteps(args, model, collate, kind)  # type: ignore[assignment]

    def resume(self, args: TrainingArguments, state: Any) -> None:
        """Load the state of the checkpoint that the Trainer resumes from.

        Raises:
            PerdureError: the state is missing, or belongs to other weights.
        """
        if not self.steps or not state.global_step:
            return
        folder = checkpoint_folder(args, state)
        file = folder / METHOD_STATE
        if not file.exists():
            raise PerdureError(
                f"{self.name}: cannot resume at step {state.global_step}: {file} is missing; "
                "resume from a checkpoint saved with this callback, under its output_dir"
            )
        saved, present = load_state(self.steps, folder), self.steps.state_dict()
        if not torch.equal(saved["weights"], present["weights"]):
            raise PerdureError(
                f"{self.name}: cannot resume at step {state.global_step}: {file} belongs to other "
                "weights; set output_dir to that of the run that saved the checkpoint"
            )
        self.load_state_dict(load_state(self, folder))

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.steps:
            with self.steps.complete_gradients():
                self.edit_gradients(model)  # type: ignore[arg-type]

    def on_save(self, args, state, control, **kwargs):
        if self.steps and args.should_save:
            save_state([self, self.steps], checkpoint_folder(args, state))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.steps:
            self.end_task(model)  # type: ignore[arg-type]
            self.tear_down()

    def tear_down(self) -> None:
        """Remove the hooks from the model, so that the method can be used again."""
        if self.steps:
            self.steps.close()
            del self.engine


def first_row(dataset: Any) -> list[Any]:
    """The first row of a dataset, in a list; an empty list if rows cannot be accessed by index."""
    is_indexed = hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)
    return [dataset[0]] if is_indexed else []


def checkpoint_folder(args: TrainingArguments, state: Any) -> Path:
    """The folder in which a Trainer saves at this step, and from which it resumes."""
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


def check_trainer(args: TrainingArguments, state: Any, model: nn.Module, where: str) -> None:
    """Refuse a Trainer in which a callback cannot use whole weights or unscaled gradients.

    Raises:
        PerdureError: with the setting to change.
    """
    accelerator = AcceleratorState()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optim = str(getattr(args.optim, "value", args.optim))
    faults = {
        "fp16, whose gradients are scaled; use bf16": accelerator.mixed_precision == "fp16",
        "sharded weights (FSDP, DeepSpeed, tensor parallel); train on one GPU or with DDP": (
            is_sharded(model)
        ),
        "weights on several devices; load the model without device_map, or on one device": (
            len({p.device for p in parameters}) > 1
        ),
        f"optim={optim}, which steps inside backward; use adamw_torch": any(
            name in optim for name in STEPS_IN_BACKWARD
        ),
        "learning_rate 0, which has no schedule; set it above 0": not args.learning_rate,
        "a hyperparameter search; train with its result instead": state.is_hyper_param_search,
    }
    for fault, present in faults.items():
        if present:
            raise PerdureError(f"{where}: this Trainer has {fault}")


def kind_of_batch(model: nn.Module, batch: dict[str, Any], where: str) -> Kind:
    """The kind of a model, from its class, its config and the labels of a batch.

    Raises:
        PerdureError: its loss is not cross-entropy over next tokens, target tokens or classes.
    """
    bare = _without_peft(model)
    labels, config = batch.get("labels"), getattr(bare, "config", None)
    if isinstance(labels, Tensor) and not labels.is_floating_point() and config is not None:
        if labels.dim() == 1:
            return "encoder"
        if config.is_encoder_decoder:
            return "seq2seq"
        listed = any(c.__name__ in CAUSAL for c in type(bare).__mro__)
        if listed or getattr(bare, "loss_type", None) == "ForCausalLM":
            return "causal"
    raise PerdureError(
        f"{where}: cannot rehearse with {type(bare).__name__} and these features; it takes causal "
        "LMs, encoder-decoders and single-label classifiers, and features that have labels"
    )


def gradient_excess(args: TrainingArguments) -> int:
    """The factor by which gradients are too large if the model ignores `num_items_in_batch`."""
    processes = max(args.world_size, args.n_gpu) if args.average_tokens_across_devices else 1
    return args.gradient_accumulation_steps * processes


@torch.no_grad()
def warn_if_mis_scaled(
    args: TrainingArguments, model: nn.Module, batch: dict[str, Any], where: str
) -> None:
    """Warn if the model accepts `num_items_in_batch` but ignores it.

    The Trainer then assumes that the model's loss is divided by the items of the whole accumulated
    batch, and adds up the means of micro-batches. The check computes the loss with two values of
    `num_items_in_batch`; the two results must differ.
    """
    bare = _without_peft(model)
    parameters = inspect.signature(type(bare).forward).parameters.values()
    has_kwargs = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    is_passed = "labels" in batch and getattr(bare, "accepts_loss_kwargs", has_kwargs)
    if gradient_excess(args) == 1 or not is_passed or is_sft(args) or args.label_smoothing_factor:
        return
    training, batch = model.training, for_model(batch, args)
    model.eval()
    numbers = torch.tensor([1, 2], device=args.device)
    outputs = [model(**batch, num_items_in_batch=number) for number in numbers]
    model.train(training)
    losses = [output["loss"] if isinstance(output, dict) else output[0] for output in outputs]
    if torch.equal(losses[0], losses[1]):
        warnings.warn(
            f"{where}: {type(bare).__name__} ignores num_items_in_batch, so the gradients of this "
            f"Trainer are {gradient_excess(args)} times too large; train without gradient "
            "accumulation, or set trainer.model_accepts_loss_kwargs = False",
            stacklevel=2,
        )


def _without_peft(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
