"""The engine: a Trainer that computes the task loss itself and calls the hooks of the methods."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from perdure import processes
from perdure.config import GROUPED
from perdure.data.tokens import Collator
from perdure.disk import remove, usual_modes
from perdure.errors import PerdureError, one_line
from perdure.models.base import Base
from perdure.models.kinds import Kind
from perdure.models.layout import METHOD_STATE
from perdure.models.sharded import as_sharded, reshard, whole
from perdure.say import Say, silent
from perdure.stopping import held, in_time, is_requested, stop
from perdure.train.checkpoints import HASHES, complete_checkpoints, damage, seal, step_of
from perdure.train.dev import DevEvaluation
from perdure.train.finite import FiniteCheck, check_state
from perdure.train.grouping import GroupedSampler, spread_by_length
from perdure.train.lifecycle import next_start
from perdure.train.losses import count_items
from perdure.train.method import Loss, Method
from perdure.train.passes import Passes
from perdure.train.rehearsals import Rehearsals
from perdure.train.sharing import Shares
from perdure.train.step import accumulate, clip_and_step, gradient_of, task_loss
from perdure.writing import writing


LONGEST_STEP = 10.0  # seconds that a signal waits for the end of a step
BEST = "best"  # the folder of the best weights, with the step


class RehearsalCollator:
    """A collator that adds the methods' old rows; `batches` counts the task's micro-batches.

    Each of several processes draws for its own part of a step, and together they draw what one
    process would. If the new rows are grouped by length, the old rows of an epoch are drawn at
    once, and some of them change places (`spread_by_length`).
    """

    def __init__(
        self,
        collator: Collator,
        methods: Sequence[Method],
        args: TrainingArguments,
        rehearsals: Rehearsals,
    ):
        self.collator, self.methods, self.batches = collator, methods, 0
        self.rehearsals = rehearsals
        self.processes, self.process = args.world_size, args.process_index
        self.batches_a_step = args.gradient_accumulation_steps * args.world_size
        self.groups: GroupedSampler | None = None
        self.per_epoch = 0  # the micro-batches of an epoch in each process
        self.steps = 0  # the optimizer steps of the task
        self._grouped = lru_cache(maxsize=1)(self._grouped_rows)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = self.batches * self.processes + self.process
        if self.groups:
            epoch, place = divmod(batch, self.per_epoch * self.processes)
            old = self._grouped(self.groups, epoch)[place]
        else:
            old = self._old_rows(batch, len(features))
        self.batches += 1
        self.rehearsals.add_batch(old)
        return self.collator(features + old)

    def _old_rows(self, batch: int, size: int) -> list[dict[str, Any]]:
        return [row for method in self.methods for row in method.rehearse(batch, size)]

    def _grouped_rows(self, groups: GroupedSampler, epoch: int) -> list[list[dict[str, Any]]]:
        """The old rows of each micro-batch of an epoch, over all processes.

        Those that come after the last step of the task are not exchanged with the others.
        """
        count = self.per_epoch * self.processes
        new = groups.batches(epoch, count)  # their lengths
        old = [self._old_rows(epoch * count + i, len(part)) for i, part in enumerate(new)]
        steps_before = epoch * -(-count // self.batches_a_step)
        learned = max(self.steps - steps_before, 0) * self.batches_a_step
        spread = spread_by_length(
            old[:learned],
            new[:learned],
            self.batches_a_step,
            kind=self.collator.kind,
            task_of=self.rehearsals.task_of,
        )
        return [*spread, *old[learned:]]


class ContinualTrainer(Trainer):
    """Learns one task. Each task gets a new trainer, so that no optimizer state carries over."""

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
        task: str = "",
        say: Say = silent,
        dev: DevEvaluation | None = None,
        padding_free: bool = False,
        shares: Shares | None = None,
    ):
        self.shares = shares or Shares(args.world_size)
        self.base, self.methods, self.resume, self.dev = base, methods, resume, dev
        self.passes, self.rehearsals = passes or Passes(), rehearsals or Rehearsals({})
        self.collate = Collator(base.tokenizer, base.kind, padding_free)
        self.padded = Collator(base.tokenizer, base.kind)
        self.rehearsal = RehearsalCollator(self.collate, methods, args, self.rehearsals)
        self.gradient_norm: Tensor | None = None  # of the gradients, if a method has computed it
        self.finite = FiniteCheck(task, lambda: self.parameters, self.of_all_processes, say)
        super().__init__(
            model=base.model,
            args=args,
            train_dataset=features,  # type: ignore[arg-type]  # a list is a map-style dataset
            eval_dataset=dev.rows.features if dev else None,  # type: ignore[arg-type]
            data_collator=self.rehearsal,
            callbacks=[
                self.finite,
                *([dev] if dev else []),
                *methods,
                _MethodState(self),
                *callbacks,
            ],
        )
        self.model_accepts_loss_kwargs = True  # `token_loss` divides by the accumulated items
        self.remove_callback(PrinterCallback)
        # For callbacks such as `Guard`. The trainer has none, so that no checkpoint stores it.
        self.callback_handler.processing_class = base.tokenizer
        for method in methods:
            method.engine = self
        if dev:
            dev.engine = self

    @property
    def kind(self) -> Kind:
        return self.base.kind

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, in the model's order."""
        return [p for p in self.base.model.parameters() if p.requires_grad]

    def learn(self) -> float:
        """Train to the end, from the checkpoint `resume` if there is one; return the mean loss.

        A signal that asks the process to stop waits for the end of the step, and the training then
        leaves a checkpoint.
        """
        with held(LONGEST_STEP), self._whole_checkpoints():
            output = self.train(resume_from_checkpoint=str(self.resume) if self.resume else None)
        # accelerate leaves its autocast around `forward`; scoring needs the original one
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return output.training_loss

    def of_all_processes(self, tensor: Tensor) -> Tensor:
        """Gather a tensor [n] of each process, as [processes * n]."""
        gathered: Any = self.accelerator.gather(tensor)
        return gathered

    def add_up_counts(self) -> None:
        """Add what all processes have counted to the counts of the main one; the others' are 0."""
        if self.args.world_size == 1:
            return
        counters: list[Passes | Rehearsals] = [self.passes, self.rehearsals]
        for counter in counters:
            state = {}
            for name, count in counter.state_dict().items():
                together = self.of_all_processes(count[None].to(self.args.device)).sum(0)
                state[name] = together.cpu() * self.is_world_process_zero()
            counter.load_state_dict(state)

    def check_end(self) -> None:
        """Check the trained weights after `end_task`, and the outputs for the first row.

        Raises:
            NotFiniteError: they are not finite.
        """
        self.finite.check("at the end of the task")
        _, outputs = self.look([self.train_dataset[0]])  # type: ignore[index]
        self.finite.add_loss(outputs.logits.float().amax())  # a token may have -inf, but not all
        self.finite.check("at the end of the task, for its first row")

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the dev rows after the current step; log the metrics, and return them.

        Raises:
            PerdureError: there are none.
        """
        if self.dev is None:
            raise PerdureError("a callback asks for an evaluation, but the task has no dev rows")
        metrics = self.dev.measure(self.state.global_step)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    @contextmanager
    def _whole_checkpoints(self) -> Iterator[None]:
        """Delete a checkpoint that is not whole if the block ends with an error.

        Raises:
            PerdureError: a checkpoint cannot be written.
        """
        work = Path(str(self.args.output_dir))
        try:
            with writing(work):
                yield
        except BaseException:
            for checkpoint in work.glob("checkpoint-*") if self.args.should_save else ():
                if not (checkpoint / HASHES).exists():
                    remove(checkpoint)
            raise

    # --- the rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if self.args.train_sampling_strategy != GROUPED:
            return super()._get_train_sampler(train_dataset)
        features: Any = self.train_dataset
        self.rehearsal.groups = GroupedSampler(features, self.args, self.base.kind, self._epoch)
        return self.rehearsal.groups

    def _epoch(self) -> int:
        """The number of the epoch that begins or, after a resumption, goes on; from 0."""
        return self.rehearsal.batches // self.rehearsal.per_epoch

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
        self.rehearsals.count_batch()
        for method in self.methods:
            inputs = method.before_step(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.finite.add_loss(loss)
        if self.accelerator.sync_gradients:
            self.gradient_norm = None
            for method in sorted(self.methods, key=lambda method: not method.pulls):
                edit: Any = method.edit_gradients
                if getattr(edit, "__func__", None) is not Method.edit_gradients:
                    self.gradient_norm = edit(self.base.model)
        return loss

    def _clip_grad_norm(self, model):
        if self.gradient_norm is None:
            return super()._clip_grad_norm(model)
        clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, self.gradient_norm)
        return self.gradient_norm

    def _get_grad_norm(self, model, grad_norm=None):
        norm: Any = super()._get_grad_norm(model, grad_norm)
        self.finite.add_norm(norm)
        return norm

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, outputs = self.task_loss(model, inputs, num_items_in_batch)
        if model.training:
            loss = self._with_extra_losses(loss, model, inputs, outputs, num_items_in_batch)
        loss = loss * self.accelerator.num_processes  # items are of all processes, and DDP averages
        return (loss, outputs) if return_outputs else loss

    def _with_extra_losses(
        self,
        loss: Tensor,
        model: nn.Module,
        inputs: dict[str, Tensor],
        outputs: Any,
        num_items: Tensor | int | None,
    ) -> Tensor:
        """Add the methods' terms to a loss, weighted by the micro-batch's share of the items."""
        for method in self.methods:
            extra = method.extra_loss(model, inputs, outputs)
            if extra is not None:  # the shares of a step's micro-batches add up to one
                items = count_items(inputs, self.base.kind)
                loss = loss + extra * items / (items if num_items is None else num_items)
        return loss

    def task_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items: Tensor | int | None = None
    ) -> tuple[Tensor, Any]:
        """The task loss (`train.step.task_loss`), and the model's outputs."""
        return task_loss(model, self.base.model, inputs, self.base.kind, num_items)

    # --- the services for methods

    def side_gradient(
        self, rows: list[dict[str, Any]], seed: int, loss: Loss | None = None
    ) -> list[Tensor]:
        """The gradient of a loss on other rows, one tensor for each parameter; `.grad` is kept.

        By default it is the gradient of the task loss. Another `loss`, a function of a batch and
        the model's outputs, is summed over micro-batches; it is computed in evaluation mode, that
        is, without dropout.
        """
        gradient = gradient_of(self.parameters, lambda: self._backward(rows, seed, loss))
        self.finite.add_gradient(gradient)
        return gradient

    @torch.no_grad()
    def look(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Tensor], Any]:
        """The padded batch of some rows, and the model's outputs on it in evaluation mode."""
        batch: Any = self._prepare_inputs(self.padded(rows))
        self.base.model.eval()
        with self._counted_once(), self.compute_loss_context_manager():
            _, outputs = self.task_loss(self.base.model, batch)
        reshard(self.base.model)
        self.base.model.train()
        return batch, outputs

    def next_start(self) -> dict[str, Tensor]:
        """Copies of the trained weights with which the next task will begin.

        It may be called in phase 2 of the end of a task, when all methods have changed the weights.
        """
        return next_start(self.methods, self.base.model)

    def fit_step(
        self,
        rows: list[dict[str, Any]],
        optimizer: Optimizer,
        seed: int,
        inspect: Callable[[], Tensor | None] = lambda: None,
    ) -> None:
        """A full step on other rows with another optimizer: backward, `inspect`, clip, step.

        What the methods add to the loss (`extra_loss`, `add_penalty`) holds in this step, too.
        It is called between the Trainer's steps (in `on_step_end`), where there are no gradients,
        and leaves none. Dropout uses `seed`, so that the Trainer's own draws stay the same.
        """
        self._backward(rows, seed, extra=True)
        for method in self.methods:
            method.add_penalty(self.base.model)
        norm = inspect()
        parameters, max_norm = self.parameters, self.args.max_grad_norm
        if not max_norm:  # otherwise clipping computes the norm
            self.finite.add_gradient(p.grad for p in parameters)
        clip = self.accelerator.clip_grad_norm_
        norm = clip_and_step(parameters, optimizer, max_norm=max_norm, clip=clip, norm=norm)
        if norm is not None:
            self.finite.add_norm(norm)

    def _backward(
        self,
        rows: list[dict[str, Any]],
        seed: int,
        loss: Loss | None = None,
        extra: bool = False,
    ) -> None:
        """Add the gradient of the task loss, or of another `loss`, on `rows` to `.grad`.

        `extra` adds the methods' extra losses to the task loss.
        """
        self.base.model.train(loss is None)
        with self._counted_once():
            self.rehearsals.count(rows)
            accumulate(
                rows,
                seed,
                size=self.args.per_device_train_batch_size,
                collate=self.collate,
                kind=self.base.kind,
                backward=partial(self._backward_batch, other_loss=loss, extra=extra),
            )
        self.base.model.train()

    @contextmanager
    def _counted_once(self) -> Iterator[None]:
        """Count rows that all processes pass through the model in the main process only."""
        if self.is_world_process_zero():
            yield
            return
        counters: list[Passes | Rehearsals] = [self.passes, self.rehearsals]
        before = [counter.state_dict() for counter in counters]
        yield
        for counter, state in zip(counters, before, strict=True):
            counter.load_state_dict(state)

    def _backward_batch(
        self, batch: Any, items: Tensor, other_loss: Loss | None, extra: bool
    ) -> None:
        batch, items = self._prepare_inputs(batch), items.to(self.args.device)
        with self.compute_loss_context_manager():
            wrapped: Any = self.model_wrapped
            loss, outputs = self.task_loss(wrapped, batch, items)
            loss = other_loss(batch, outputs) if other_loss else loss
            if extra:
                loss = self._with_extra_losses(loss, wrapped, batch, outputs, items)
        self.finite.add_loss(loss)
        self.accelerator.backward(loss)

    # --- checkpoints inside a task, which hold the trained weights only

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = gathered(
            {n: p.detach() for n, p in self.base.model.named_parameters() if p.requires_grad}
        )
        if self.args.should_save:
            save_file(trained, folder / "trained.safetensors", metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        trained = load_file(Path(resume_from_checkpoint) / "trained.safetensors")
        parameters = dict(self.base.model.named_parameters())
        with torch.no_grad():
            for name, tensor in trained.items():
                parameters[name].copy_(as_sharded(tensor, parameters[name]))

    # --- the best weights, in a folder beside the checkpoints

    def keep_best(self, step: int) -> None:
        """Keep the trained weights and the methods' tensors as those of the best step so far.

        Earlier ones are deleted, except those to which the checkpoints may go back.
        """
        work = Path(str(self.args.output_dir))
        if not self.args.should_save:
            self._save(str(work / f"{BEST}-{step}"))  # with its parts of sharded tensors
            state_of(self.methods)
            return
        folders = sorted(work.glob(f"{BEST}-*"), key=step_of)
        of_checkpoints: list[Path] = []
        for checkpoint in complete_checkpoints(work):
            of_checkpoints += [f for f in folders if step_of(f) <= step_of(checkpoint)][-1:]
        for folder in folders:
            if folder not in of_checkpoints:
                shutil.rmtree(folder)
        folder = work / f"{BEST}-{step}"
        self._save(str(folder))
        save_state(self.methods, folder)
        seal(folder)

    def restore_best(self, step: int) -> None:
        """Go back to the weights and the methods' tensors that `keep_best` kept at `step`."""
        self.accelerator.wait_for_everyone()  # the first process has written them
        work = Path(str(self.args.output_dir))
        folder = work / f"{BEST}-{step}"
        if damaged := damage(folder):
            raise PerdureError(
                f"{folder}: is damaged ({damaged}); delete {work} and repeat the command, which "
                "begins the task again"
            )
        self._load_from_checkpoint(str(folder))
        for method in self.methods:
            method.load_state_dict(load_state(method, folder))


class _MethodState(TrainerCallback):
    """Saves the methods' tensors last, so that their file shows that a checkpoint is complete.

    It comes after the methods, and checks the steps that they took after the Trainer's.
    """

    def __init__(self, engine: ContinualTrainer):
        self.engine, self.is_stopping = engine, False

    @property
    def stateful(self) -> list[Method | Passes | Rehearsals | Shares | DevEvaluation]:
        engine = self.engine
        dev = [engine.dev] if engine.dev else []
        return [*engine.methods, engine.passes, engine.rehearsals, engine.shares, *dev]

    def on_step_end(self, args, state, control, **kwargs):
        if self.engine.finite.pending:
            self.engine.finite.check(f"at step {state.global_step}, in steps on old rows")
        self.is_stopping = self._is_stopping(args)
        if self.is_stopping and processes.shard_weights():
            stop(f"in {state.global_step} of {state.max_steps} steps, which are not kept")
        if self.is_stopping:
            in_time()
            control.should_save = True

    def _is_stopping(self, args: TrainingArguments) -> bool:
        """Return whether one of the processes was asked to stop."""
        if args.world_size == 1:
            return is_requested()
        flag = torch.tensor([is_requested()], device=args.device)
        return bool(self.engine.of_all_processes(flag).any())

    def on_save(self, args, state, control, **kwargs):
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self.engine.add_up_counts()
        if state.is_world_process_zero:
            save_state(self.stateful, folder)
        self.engine.accelerator.wait_for_everyone()  # until every process has written its files
        if state.is_world_process_zero:
            seal(folder)
        if self.is_stopping:
            stop(f"after step {state.global_step} of {state.max_steps}, which is kept")

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.engine.rehearsal.per_epoch = len(train_dataloader)  # type: ignore[arg-type]
        self.engine.rehearsal.steps = state.max_steps
        if not self.engine.resume:
            return
        for stateful in self.stateful:
            stateful.load_state_dict(load_state(stateful, self.engine.resume))
        if not state.is_world_process_zero:  # the counts are of all processes
            self.engine.passes.forward = self.engine.passes.backward = 0
            self.engine.rehearsals.times.zero_()
        per_epoch = self.engine.rehearsal.per_epoch
        accumulated = args.gradient_accumulation_steps
        epochs, steps = divmod(state.global_step, -(-per_epoch // accumulated))
        self.engine.rehearsal.batches = epochs * per_epoch + steps * accumulated


class Stateful(Protocol):
    """A method, or another object with tensors in a checkpoint."""

    @property
    def name(self) -> str: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def state_of(methods: Sequence[Stateful]) -> dict[str, Tensor]:
    """Return the tensors of all methods, as `<method>.<name>`; all processes must call this."""
    return gathered({f"{m.name}.{k}": v for m in methods for k, v in m.state_dict().items()})


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whole, those that were sharded on the CPU of the main process only."""
    whole_tensors = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            full = whole(tensor)
            tensor = full.cpu() if processes.is_main() else full.new_empty(0)
        whole_tensors[name] = tensor
    return whole_tensors


def save_state(methods: Sequence[Stateful], folder: Path) -> None:
    """Write the tensors of all methods to `method.safetensors`."""
    write_state(state_of(methods), folder)


def write_state(state: dict[str, Tensor], folder: Path) -> None:
    """Write the tensors that `state_of` returns to `method.safetensors`."""
    check_state(state)
    temporary = folder / f".{METHOD_STATE}"
    save_file(state, temporary, metadata={"format": "pt"})
    temporary.replace(folder / METHOD_STATE)  # the file is complete or absent
    usual_modes(folder)


def load_state(method: Stateful, folder: Path) -> dict[str, Tensor]:
    """The tensors that `save_state` wrote for this method; none if it was not one of them.

    Raises:
        PerdureError: the file does not load.
    """
    try:
        state = load_file(folder / METHOD_STATE)
    except (OSError, ValueError, SafetensorError) as error:
        file = folder / METHOD_STATE
        raise PerdureError(f"{file}: damaged ({one_line(error)}); restore it from a copy") from None
    prefix = f"{method.name}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
