"""The guard as a callback of any `transformers.Trainer`."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from perdure.errors import NotFiniteError, PerdureError
from perdure.measure.guard.guard import (
    LIMIT,
    MAX_NEW_TOKENS,
    ask,
    guard,
    has_template,
    not_finite,
)
from perdure.measure.guard.rows import GuardRow, read_guard_rows, sampled
from perdure.measure.guard.subject import Subject
from perdure.measure.predict import Generated
from perdure.models.adapter_disabled import adapter_disabled, base_is_kept
from perdure.models.base import Base
from perdure.models.kinds import kind_of
from perdure.models.limits import limits
from perdure.models.sharded import is_sharded
from perdure.say import Say
from perdure.seeds import forked


@dataclass(eq=False)
class Guard(TrainerCallback):
    """Measures in a Trainer what the model loses of its general ability while it is trained.

        trainer = SFTTrainer(..., callbacks=[perdure.Guard()])

    It asks the model the rows of `perdure check` when training ends, and every `every` steps, and
    compares the answers with those of a reference:

    - With a PEFT adapter, the reference is the base: the same network with the adapter disabled.
    - If weights of the model itself are trained (all weights, or biases or embeddings beside an
      adapter) or are changed by the adapter's initialisation (PiSSA, OLoRA), the reference is the
      model as it is when training begins. Its answers are taken then. Afterwards its
      log-probabilities can no longer be computed, because a second copy of the weights would be
      needed, so **the KL is not measured** (`kl` is None). The checks and the form of the answers
      are. A training that is resumed is compared with the checkpoint from which it goes on, and a
      line says so.

    If the outputs of the model are not finite, general ability is lost (`is_finite` is false).
    Training is bitwise the same as without the callback, unless `stop` or `keep_best` acts. The
    verdict is reported in words when training ends. Put this callback after others that change
    weights when training ends, such as `RecurrentKIF`.

    Under DDP the first process asks the model while the others wait, and all of them get the
    result. Sharded weights (FSDP, DeepSpeed, tensor parallelism) are refused, as are models that
    do not generate text.

    Args:
        rows: the user's own rows, a file or a list (docs/check.md); None asks the bundled ones.
        limit: the most rows that are asked, as many of each skill as possible; None asks all.
        system: a system prompt before each row.
        max_new_tokens: the most tokens of an answer.
        every: the number of optimizer steps between measurements; None measures only at the end.
        stop: whether training stops when general ability is lost.
        keep_best: whether the trainable weights of the best measured step are restored when
            training ends. The best is, among the steps that have not lost general ability, the one
            with the lowest `net`; of those, the one with the lowest KL, where it is measured; and
            of those, the last. If all have lost it, the last weights stay. A copy of the trainable
            weights is kept in the memory of the CPU. Checkpoints are not changed, and a training
            that is resumed only chooses among the steps that it measures itself.
        log: whether `guard/net`, `guard/kl` and `guard/passed` are added to the Trainer's log
            (`trainer.state.log_history`). Set `guard.trainer = trainer` before training to send
            them also to TensorBoard, Weights & Biases and others that the Trainer reports to.
        say: called with each line that is reported.

    Attributes:
        results: what was measured, in order: the dictionaries of `perdure.check`, with `step`.
        kept: the step whose weights were restored by `keep_best`, else None.

    Raises:
        PerdureError: a keyword or a row is wrong, or, when training begins, the Trainer has no
            tokenizer, sharded weights or a model that cannot be asked.
    """

    _: KW_ONLY
    rows: str | Path | Sequence[Mapping[str, Any]] | None = None
    limit: int | None = LIMIT
    system: str | None = None
    max_new_tokens: int = MAX_NEW_TOKENS
    every: int | None = None
    stop: bool = False
    keep_best: bool = False
    log: bool = True
    say: Say = print
    trainer: Any = field(default=None, init=False, repr=False)
    results: list[dict[str, Any]] = field(default_factory=list, init=False, repr=False)
    kept: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, number in (("max_new_tokens", self.max_new_tokens), ("every", self.every)):
            if number is not None and not (isinstance(number, int) and number >= 1):
                raise PerdureError(
                    f"Guard: {name} must be a whole number of at least 1, got {number!r}"
                )
        for name, is_on in (("stop", self.stop), ("keep_best", self.keep_best)):
            if is_on and self.every is None:
                raise PerdureError(
                    f"Guard: {name} needs measurements during training; set every to a number of "
                    "steps"
                )
        self.guard_rows: tuple[GuardRow, ...] = sampled(read_guard_rows(self.rows), self.limit)

    # --- the events of the Trainer

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Ask the reference.

        Raises:
            PerdureError: the Trainer or its model does not allow it.
        """
        check_trainer(args, model, processing_class, keep_best=self.keep_best)
        self.results, self.kept = [], None
        self.best: Any = None  # the result of the best step so far
        self.best_weights: dict[str, Tensor] = {}
        self.has_base = has_untouched_base(model)
        base = base_of(model, processing_class)
        self.subject = Subject("the model", base, lambda: scoring(args, base, untouched=False))
        self.reference = replace(self.subject, name="the model before training")
        if self.has_base:
            self.reference = Subject("the base", base, lambda: scoring(args, base, untouched=True))
        self.reference_answers: list[Generated] = []
        if args.process_index == 0:
            if state.global_step and not self.has_base:
                self.say(
                    f"Guard: training goes on at step {state.global_step}, so general ability is "
                    "compared with that of the checkpoint"
                )
            self.reference_answers = ask(
                self.reference,
                self.guard_rows,
                in_template=has_template(self.reference),
                system=self.system,
                max_new_tokens=self.max_new_tokens,
            )

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Measure every `every` steps."""
        if self.every and state.global_step % self.every == 0:
            result = self._measure(args, state)
            if result["lost"] and self.stop:
                control.should_training_stop = True

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Measure the trained model, restore the best weights, and report the verdict."""
        # Other callbacks, and `load_best_model_at_end`, may change weights after the last step.
        if not self.results or self.measured != (state.global_step, fingerprint(model)):
            self._measure(args, state)
        lines = self._restore(model) if self.keep_best else []
        result = self.results[-1] if self.kept is None else self.best
        if args.process_index == 0:
            for line in [*lines, *result["verdict"]]:
                self.say(line)
        self.best_weights, self.reference_answers = {}, []
        del self.reference, self.subject  # so that the model can be freed

    # --- measuring

    def _measure(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        """Compare the model with the reference, and keep the result and the best weights."""
        result: Any = self._compare(state.global_step) if args.process_index == 0 else None
        if args.world_size > 1:
            result = broadcast_object_list([result])[0]
        self.results.append(result)
        model = self.subject.base.model
        self.measured = (state.global_step, fingerprint(model))
        if self.log:
            self._log(result, state)
        is_best = self.best is None or _rank(result) <= _rank(self.best)
        if self.keep_best and not result["lost"] and is_best:
            self.best = result
            self.best_weights = {
                name: parameter.detach().to("cpu", copy=True)
                for name, parameter in model.named_parameters()
                if parameter.requires_grad
            }
        return result

    def _compare(self, step: int) -> dict[str, Any]:
        subject = replace(self.subject, name=f"step {step}")
        try:
            result = guard(
                self.reference,
                subject,
                self.guard_rows,
                system=self.system,
                max_new_tokens=self.max_new_tokens,
                reference_answers=self.reference_answers,
                with_kl=self.has_base,
            )
        except NotFiniteError:
            result = not_finite(self.reference, subject, self.guard_rows, self.reference_answers)
        return {"step": step, **result}

    def _log(self, result: dict[str, Any], state: TrainerState) -> None:
        metrics = {f"guard/{key}": result[key] for key in ("net", "kl", "passed")}
        metrics = {key: value for key, value in metrics.items() if value is not None}
        if self.trainer is not None:
            # Not the method of a subclass, which may add its own metrics and reset them.
            Trainer.log(self.trainer, metrics)
        else:
            state.log_history.append({**metrics, "epoch": state.epoch, "step": state.global_step})

    def _restore(self, model: nn.Module) -> list[str]:
        """Restore the best weights, and return what to report of it."""
        if self.best is None:
            return ["Guard: general ability is lost at every measured step; the last weights stay"]
        self.kept = self.best["step"]
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, weights in self.best_weights.items():
                parameters[name].copy_(weights)
        return [f"Guard: the model has the weights of step {self.kept}, the best that was measured"]


def _rank(result: dict[str, Any]) -> tuple[float, float]:
    """Return what is compared to find the best result; lower is better."""
    return result["net"], 0.0 if result["kl"] is None else result["kl"]


def fingerprint(model: nn.Module) -> list[float]:
    """Return the sum of each trainable parameter, by which a change of weights is noticed."""
    return [p.detach().double().sum().item() for p in model.parameters() if p.requires_grad]


def check_trainer(
    args: TrainingArguments, model: nn.Module, processing_class: Any, keep_best: bool
) -> None:
    """Refuse a Trainer whose model cannot be asked.

    Raises:
        PerdureError: with what to change.
    """
    if keep_best and args.load_best_model_at_end:
        raise PerdureError(
            "Guard: keep_best and load_best_model_at_end would both choose the weights; leave one "
            "of them out"
        )
    if is_sharded(model):
        raise PerdureError(
            "Guard: this Trainer has sharded weights (FSDP, DeepSpeed, tensor parallel); train on "
            "one GPU or with DDP, or use `perdure check` after training"
        )
    if processing_class is None:
        raise PerdureError(
            "Guard: this Trainer has no tokenizer; give it one as processing_class=tokenizer"
        )
    if not getattr(model, "can_generate", lambda: False)():
        raise PerdureError(
            "Guard: the model cannot generate text, so its general ability cannot be checked; "
            "leave the callback out"
        )


def base_of(model: Any, processing_class: Any) -> Base:
    """Return the model of a Trainer as one that can be asked.

    Raises:
        PerdureError: it is not a language model of a known kind.
    """
    name = model.config.name_or_path or "the Trainer's model"
    kind = kind_of(model.config, name)
    tokenizer = getattr(processing_class, "tokenizer", processing_class)  # of a processor
    return Base(name, kind, model, tokenizer, limits=limits(model.config, kind))


def has_untouched_base(model: nn.Module) -> bool:
    """Return whether a model is its untouched base while its adapter is disabled.

    It is not if weights are trained that do not belong to the adapter, as with PEFT's `bias`. They
    are the trainable ones that stay trainable while the adapter is disabled.
    """
    if not isinstance(model, PeftModel) or not base_is_kept(model):
        return False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with without_adapter(model):
        return not any(parameter.requires_grad for parameter in trainable)


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[None]:
    """Disable the adapter for a block, without PEFT's warning of trained biases.

    `has_untouched_base` finds these.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Careful, disabling adapter layers", UserWarning)
        with adapter_disabled(model):
            yield


@contextmanager
def scoring(args: TrainingArguments, base: Base, untouched: bool) -> Iterator[None]:
    """The context in which the model, or its untouched base, answers as in training.

    The global random generators are restored after it.
    """
    device = next(base.model.parameters()).device.type
    half = torch.float16 if args.fp16 else torch.bfloat16
    with (
        forked(0),
        torch.autocast(device, dtype=half, enabled=args.fp16 or args.bf16),
        without_adapter(base.peft) if untouched else nullcontext(),
    ):
        yield
