"""The base class of all methods: a `TrainerCallback` with the few hooks that a callback lacks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.models.base import Base
from perdure.models.kinds import Kind
from perdure.train.memory import Memory
from perdure.train.passes import Passes


Family = Literal[
    "baseline",
    "rehearsal",
    "recurrent fusion",
    "regularisation",
    "distillation",
    "gradient and weights",
    "adapters",
    "data and schedule",
]


# A function of a batch and of the model's outputs on it.
Loss = Callable[[dict[str, Tensor], Any], Tensor]


class Steps(Protocol):
    """The part of the engine that a method can use in any Trainer, Perdure's own or another."""

    args: TrainingArguments

    @property
    def parameters(self) -> list[nn.Parameter]: ...

    def fit_step(
        self,
        rows: list[dict[str, Any]],
        optimizer: Optimizer,
        seed: int,
        inspect: Callable[[], Tensor | None] = ...,
    ) -> None: ...


class Engine(Steps, Protocol):
    """The part of Perdure's own engine, `train.trainer.ContinualTrainer`, that a method can use."""

    base: Base
    passes: Passes
    train_dataset: Any  # the features of the task's rows, a list

    @property
    def kind(self) -> Kind: ...

    def side_gradient(
        self, rows: list[dict[str, Any]], seed: int, loss: Loss | None = None
    ) -> list[Tensor]: ...

    def look(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Tensor], Any]: ...

    def next_start(self) -> dict[str, Tensor]: ...

    def of_all_processes(self, tensor: Tensor) -> Tensor: ...


@dataclass
class TaskContext:
    """What a method knows about the task that is about to be learned.

    Args:
        task: the name of the task.
        stage: how many tasks the model will have learned with this one; 1 is the first task.
            Reverted stages do not count. An adapter with which the lineage began
            (`init --adapter`) counts as one task.
        seed: the seed of this stage and method; random draws use `derive(seed, purpose)`.
        memory: the remembered rows of earlier tasks, as features.
        state: the tensors that the method stored last (`Method.state_dict`), on the CPU; empty
            before it has stored any.
        is_newest: whether the method took part in the previous stage, whose state it then is. It
            did not if `adopt`, `merge` or another method has made a stage since, or if this is the
            first stage after an adapter with which the lineage began.
        labels: the number of labels that an encoder's head had before it grew for this task; None
            for other models.
        is_first: whether the model has the weights with which the lineage began.
    """

    task: str
    stage: int
    seed: int
    memory: Memory
    state: dict[str, Tensor]
    is_newest: bool = True
    labels: int | None = None
    is_first: bool = False


@dataclass(frozen=True)
class Keeps:
    """What a method must reach on the small stream of tests/methods/test_toy_stream.py.

    The stream has two tasks, of which plain fine-tuning forgets the first one.

    Args:
        share: the smallest share that the method must avoid of the loss that plain fine-tuning
            adds on the first task. The default is for a new method; a better one raises it.
        second_loss: the largest loss allowed on the second task, in nats. Before the task is
            learned it is above 5.
        keywords: the method's keywords in this test, if its defaults do not suit such a stream.
    """

    share: float = 0.3
    second_loss: float = 0.7
    keywords: dict[str, Any] = field(default_factory=dict)


class Method(TrainerCallback):
    """How old knowledge is protected while a task is learned.

    A subclass is one file. The keywords of its constructor, with their types and defaults, are its
    settings. It inherits every event of `transformers.TrainerCallback`. The engine calls the hooks
    below in the order in which they are defined, except that `load_state_dict` is called before the
    first step of a resumed task, and `state_dict` with each checkpoint as well. Methods can be
    combined in a list. CONTRIBUTING.md has a complete example, and the state that a method sees in
    each hook.

    Attributes:
        family: the group in which `perdure methods` lists it.
        paper: a link to its paper.
        rehearses: whether it uses remembered rows.
        kinds: the kinds of model on which it works.
        needs: `lora` if it works only on LoRA's factors, `whole` if only on whole weights.
        reshapes: whether it changes which weights the model has. At most one method of a list may
            do so; it must come first, and no method of the list may be one that `follows`.
        follows: whether it compares weights with those of an earlier task, by their names.
        pulls: whether `edit_gradients` adds the gradient of a term of the loss that depends on the
            weights alone; it is then called before that of methods that do not.
        begin_phase, end_phase: the order in which `begin_task` and `end_task` of several methods
            are called (`train/lifecycle.py`).
        neutral: keywords with which the method's code runs and the result is bitwise that of
            `sequential`; None if there are none (the docstring says why).
        keeps: what it must reach on the small stream of the tests.
        presets: published sets of keywords, by name.
        left_open: by preset, the keywords that its source does not give, and why we chose their
            values.
        trained_with: by preset, the `training:` settings of its source.
    """

    family: ClassVar[Family]
    paper: ClassVar[str | None] = None
    rehearses: ClassVar[bool] = False
    kinds: ClassVar[tuple[Kind, ...]] = ("causal", "seq2seq", "encoder")
    needs: ClassVar[Literal["lora", "whole"] | None] = None
    reshapes: ClassVar[bool] = False
    follows: ClassVar[bool] = False
    pulls: ClassVar[bool] = False
    begin_phase: ClassVar[Literal[0, 1]] = 0
    end_phase: ClassVar[Literal[0, 1, 2]] = 0
    neutral: ClassVar[dict[str, Any] | None] = None
    keeps: ClassVar[Keeps] = Keeps()
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    left_open: ClassVar[dict[str, dict[str, str]]] = {}
    trained_with: ClassVar[dict[str, dict[str, Any]]] = {}

    context: TaskContext
    engine: Engine
    called: str | None = None  # its name in the settings, which may be short for a preset

    @property
    def label(self) -> str:
        """Its name in messages: the one that the settings use."""
        return self.called or self.name

    @property
    def name(self) -> str:
        """The name of the method's file or folder, which the settings use under `method:`."""
        return type(self).__module__.removesuffix(".method").rpartition(".")[2]

    @property
    def period(self) -> int:
        """After how many optimizer steps `on_step_end` does additional work; 1 if all are alike.

        Dev rows are only measured after such a step, or after the last one.
        """
        return 1

    def check(self, config: Config, kind: Kind) -> None:
        """Refuse settings with which the method cannot work, before anything is trained.

        Raises:
            PerdureError: with the setting to change.
        """
        if kind not in self.kinds:
            raise PerdureError(
                f"{self.label}: works only on a base of kind {' or '.join(self.kinds)}, and this "
                f"one is of kind {kind}; choose another method or base"
            )
        lora = config.adapter is not None and config.adapter.get("peft_type", "LORA") == "LORA"
        if self.needs == "whole" and config.adapter is not None:
            raise PerdureError(f"{self.label}: works on whole weights; set adapter=null")
        if self.needs == "lora" and not lora:
            raise PerdureError(f"{self.label}: works on LoRA's factors; set adapter={{}}")
        if self.rehearses and not config.memory.ratio and config.general.file is None:
            raise PerdureError(
                f"{self.label}: remembers rows, and memory.ratio is 0; set memory.ratio=0.05, or "
                "take a method without old rows (`perdure methods --recommend`)"
            )

    def why_not_sharded(self) -> str | None:
        """Return why it cannot work with weights that are sharded (FSDP2), None if it can.

        Its gradients, weights and optimizer states are then DTensors, of which each process has a
        part (`models/sharded.py`).
        """
        return "was not made for sharded weights"

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        """Called before the Trainer is built; returns the model to train.

        In phase 0 the model has the weights with which the previous stage ended, also when a run
        is resumed inside the task: the weights of a checkpoint are loaded later.
        """
        self.context = context
        return model

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer | None:
        """Return an optimizer to use instead of the Trainer's, or None."""
        return None

    def rehearse(self, batch: int, size: int) -> list[dict[str, Any]]:
        """Return features of old rows to add to a micro-batch, in the collator.

        Args:
            batch: the number of the micro-batch, from 0, over all processes and epochs of the task.
            size: the number of new rows in it.

        The rows may depend on these numbers only: a resumed run does not ask for earlier batches
        again, and if rows are grouped by length, all batches of an epoch are asked for at once.
        """
        return []

    def before_step(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Called before the forward pass of each micro-batch; returns the inputs to use."""
        return inputs

    def extra_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], outputs: Any
    ) -> Tensor | None:
        """Return a term to add to the task loss of a micro-batch, or None.

        The term is a mean over the micro-batch, or a function of the weights alone. The engine
        weights it by the micro-batch's share of the tokens that the whole step learns. It is also
        added in the steps that a method takes on memory (`Engine.fit_step`).
        """
        return None

    def add_penalty(self, model: nn.Module) -> None:
        """Add to `.grad` the gradient of a term that depends on the weights alone, in closed form.

        The engine calls it in the steps that another method takes on memory (`Engine.fit_step`), so
        that the term holds there, too. In the Trainer's own steps `edit_gradients` adds it.
        """

    def edit_gradients(self, model: nn.Module) -> Tensor | None:
        """Called once for each optimizer step, to read or change `.grad` in place.

        The gradients are complete: accumulated over the micro-batches and averaged over the
        processes, but not clipped yet. The weights are those before the step.

        Returns:
            The norm of the gradients, if the method has computed it, so that clipping need not.
        """

    def end_task(self, model: nn.Module) -> None:
        """Called after training and before scoring, in the order of `end_phase`."""

    def next_start(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which the model has the weights with which the next task will begin.

        These are the weights with which the stage ends, unless `begin_task` of this method changes
        them.
        """
        return nullcontext()

    def inference(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context around evaluation and generation."""
        return nullcontext()

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors to save with every checkpoint inside the task, and with the stage."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the state of an earlier step of the task, with tensors on the CPU.

        It is called after `on_train_begin` when a run is resumed inside a task, and before
        `on_train_end` when the task goes back to its best weights (`load_best_model_at_end`).
        """
