"""The engine: a Trainer that computes the task loss itself and calls the methods at the seams."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from perdure.data.tokens import Collator
from perdure.models.base import Base
from perdure.models.kinds import Kind
from perdure.models.layout import METHOD_STATE
from perdure.train.lifecycle import next_start
from perdure.train.losses import count_items
from perdure.train.method import Loss, Method
from perdure.train.passes import Passes
from perdure.train.rehearsals import Rehearsals
from perdure.train.step import accumulate, aside, clip_and_step, task_loss


class RehearsalCollator:
    """The collator with the methods' old rows in it; `batch` counts micro-batches of the task.

    Of several processes each draws for its own part of a step, and together as one process would.
    """

    def __init__(
        self,
        collator: Collator,
        methods: Sequence[Method],
        args: TrainingArguments,
        rehearsals: Rehearsals,
    ):
        self.collator, self.methods, self.batch = collator, methods, 0
        self.rehearsals = rehearsals
        self.processes, self.process = args.world_size, args.process_index

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.batch * self.processes + self.process
        old = [row for m in self.methods for row in m.rehearse(batch, len(features))]
        self.batch += 1
        self.rehearsals.made(old)
        return self.collator(features + old)


class ContinualTrainer(Trainer):
    """Learns one task. A new one is made for every task: the optimizer must not carry over."""

    def __init__(
        self,
        base: Base,
        methods: Sequence[Method],
        features: list[dict[str, Any]],
        args: TrainingArguments,
        callbacks: Sequence[TrainerCallback] = (),
        resume: Path | None = None,
        passes: Passes | None = None,
        rehearsals: Rehearsals | None = None,
    ):
        self.base, self.methods, self.resume = base, methods, resume
        self.passes, self.rehearsals = passes or Passes(), rehearsals or Rehearsals({})
        self.collate = Collator(base.tokenizer, base.kind)
        self.rehearsal = RehearsalCollator(self.collate, methods, args, self.rehearsals)
        super().__init__(
            model=base.model,
            args=args,
            train_dataset=features,  # type: ignore[arg-type]  # a list is a map-style dataset
            data_collator=self.rehearsal,
            callbacks=[*methods, _MethodState(self), *callbacks],
        )
        self.model_accepts_loss_kwargs = True  # `token_loss` divides by the accumulated items
        self.remove_callback(PrinterCallback)
        for method in methods:
            method.engine = self

    @property
    def kind(self) -> Kind:
        return self.base.kind

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the model's order."""
        return [p for p in self.base.model.parameters() if p.requires_grad]

    def learn(self) -> float:
        """Train to the end, from the checkpoint `resume` if there is one; the mean loss."""
        output = self.train(resume_from_checkpoint=str(self.resume) if self.resume else None)
        # accelerate leaves its autocast around the forward pass; scoring wants the model as it was
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return output.training_loss

    # --- the step

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        for method in self.methods:
            self.optimizer = self.optimizer or method.make_optimizer(self.parameters)
        return super().create_optimizer(model)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        items = sum(count_items(batch, self.base.kind) for batch in batches)
        if isinstance(items, Tensor) and self.args.world_size > 1:
            items = self.accelerator.gather(items.to(device)).sum()  # type: ignore[union-attr]
        return batches, items

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.rehearsals.learned()
        for method in self.methods:
            inputs = method.before_step(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            for method in self.methods:
                method.edit_gradients(self.base.model)
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = self.task_loss(model, inputs, num_items_in_batch)
        for method in self.methods if model.training else ():
            extra = method.extra_loss(model, inputs, outputs)
            if extra is not None:  # the shares of the micro-batches of a step add up to one
                items = count_items(inputs, self.base.kind)
                loss = loss + extra * items / (
                    items if num_items_in_batch is None else num_items_in_batch
                )
        loss = loss * self.accelerator.num_processes  # items are everybody's; DDP takes the mean
        return (loss, outputs) if return_outputs else loss

    def task_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items: Tensor | int | None = None
    ) -> tuple[Tensor, Any]:
        """The engine's own loss, the same rule for every kind of model, and the model's outputs."""
        return task_loss(model, self.base.model, inputs, self.base.kind, num_items)

    # --- the services for methods

    def side_gradient(
        self, rows: list[dict[str, Any]], seed: int, loss: Loss | None = None
    ) -> list[Tensor]:
        """The gradient of the task loss on other rows, a tensor a parameter; `.grad` untouched.

        With another `loss` (of a batch and the model's outputs) it is that one's, of the model in
        evaluation mode, without dropout; summed over micro-batches.
        """
        return aside(self.parameters, lambda: self._backward(rows, seed, loss))

    @torch.no_grad()
    def look(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Tensor], Any]:
        """Rows as a batch, and the outputs of the model on it, in evaluation mode."""
        batch: Any = self._prepare_inputs(self.collate(rows))
        self.base.model.eval()
        with self.compute_loss_context_manager():
            _, outputs = self.task_loss(self.base.model, batch)
        self.base.model.train()
        return batch, outputs

    def next_start(self) -> dict[str, Tensor]:
        """Copies of the trained weights as the next task will begin with them.

        Known when all methods have changed the weights, in phase 2 of the end of a task.
        """
        return next_start(self.methods, self.base.model)

    def fit_step(
        self,
        rows: list[dict[str, Any]],
        optimizer: Optimizer,
        seed: int,
        inspect: Callable[[], Any] = lambda: None,
    ) -> None:
        """A full step on other rows with another optimizer: backward, `inspect`, clip, step.

        To be called between the Trainer's steps (`on_step_end`), where there are no gradients;
        leaves none. Dropout is drawn from `seed`, so the Trainer's own draws do not move.
        """
        self._backward(rows, seed)
        inspect()
        norm, clip = self.args.max_grad_norm, self.accelerator.clip_grad_norm_
        clip_and_step(self.parameters, optimizer, norm, clip)

    def _backward(self, rows: list[dict[str, Any]], seed: int, other: Loss | None = None) -> None:
        self.rehearsals.count(rows)
        size = self.args.per_device_train_batch_size
        self.base.model.train(other is None)
        one = partial(self._backward_one, other=other)
        accumulate(rows, seed, size, self.collate, self.base.kind, one)
        self.base.model.train()

    def _backward_one(self, batch: Any, items: Tensor, other: Loss | None) -> None:
        batch = self._prepare_inputs(batch)
        with self.compute_loss_context_manager():
            wrapped: Any = self.model_wrapped
            loss, outputs = self.task_loss(wrapped, batch, items.to(self.args.device))
            loss = other(batch, outputs) if other else loss
        self.accelerator.backward(loss)

    # --- checkpoints inside a task: what is trained, not the base

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {n: p.detach() for n, p in self.base.model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "trained.safetensors", metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        trained = load_file(Path(resume_from_checkpoint) / "trained.safetensors")
        self.base.model.load_state_dict(trained, strict=False)


class _MethodState(TrainerCallback):
    """Saves the methods' tensors last, so that their file says the checkpoint is whole."""

    def __init__(self, engine: ContinualTrainer):
        self.engine = engine

    @property
    def stateful(self) -> list[Method | Passes | Rehearsals]:
        return [*self.engine.methods, self.engine.passes, self.engine.rehearsals]

    def on_save(self, args, state, control, **kwargs):
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        save_state(self.stateful, folder)

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if not self.engine.resume:
            return
        for stateful in self.stateful:
            stateful.load_state_dict(load_state(stateful, self.engine.resume))
        per_epoch = len(train_dataloader)  # type: ignore[arg-type]
        accumulated = args.gradient_accumulation_steps
        epochs, steps = divmod(state.global_step, -(-per_epoch // accumulated))
        self.engine.rehearsal.batch = epochs * per_epoch + steps * accumulated


class Stateful(Protocol):
    """A method, or what else has tensors in a checkpoint."""

    @property
    def name(self) -> str: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def save_state(methods: Sequence[Stateful], folder: Path) -> None:
    """`method.safetensors`: the tensors of all methods, each name led by its method's."""
    state = {f"{m.name}.{k}": v for m in methods for k, v in m.state_dict().items()}
    beside = folder / f".{METHOD_STATE}"
    save_file(state, beside, metadata={"format": "pt"})
    beside.replace(folder / METHOD_STATE)


def load_state(method: Stateful, folder: Path) -> dict[str, Tensor]:
    """The tensors that `save_state` wrote for this method; none if it was not among them."""
    state = load_file(folder / METHOD_STATE)
    led = f"{method.name}."
    return {name.removeprefix(led): t for name, t in state.items() if name.startswith(led)}


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in a work folder."""
    found = [p.parent for p in folder.glob(f"checkpoint-*/{METHOD_STATE}")]
    return max(found, key=lambda p: int(p.name.partition("-")[2]), default=None)
