"""What a method is: a callback of the Trainer, with the few hooks that a callback cannot have."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainingArguments

from engram.config import Config
from engram.data.tokens import Kind
from engram.errors import EngramError
from engram.train.memory import Memory


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


# Of a batch and the model's outputs on it.
Loss = Callable[[dict[str, Tensor], Any], Tensor]


class Steps(Protocol):
    """What a method may ask of whoever owns the step, Engram's engine or another Trainer."""

    args: TrainingArguments

    @property
    def parameters(self) -> list[nn.Parameter]: ...

    def fit_step(
        self,
        rows: list[dict[str, Any]],
        optimizer: Optimizer,
        seed: int,
        inspect: Callable[[], Any] = ...,
    ) -> None: ...


class Engine(Steps, Protocol):
    """What a method may ask of Engram's engine (`train/trainer.py`)."""

    train_dataset: Any  # the features of the task, a list

    @property
    def kind(self) -> Kind: ...

    def side_gradient(
        self, rows: list[dict[str, Any]], seed: int, loss: Loss | None = None
    ) -> list[Tensor]: ...

    def look(self, rows: list[dict[str, Any]]) -> tuple[dict[str, Tensor], Any]: ...

    def next_start(self) -> dict[str, Tensor]: ...


@dataclass
class TaskContext:
    """What a method may know of the task that is about to be learned.

    `stage` counts the tasks that the model has learned, with this one: 1 is the first, also where
    stages were reverted. `seed` belongs to this stage; `state` holds the tensors the same method
    stored with the stage before (empty at the first).
    """

    task: str
    stage: int
    seed: int
    memory: Memory
    state: dict[str, Tensor]


class Method(TrainerCallback):
    """How old knowledge is protected while a task is learned.

    A subclass is one file; its constructor's keywords, with their types and defaults, are its
    configuration. It inherits every event of `transformers.TrainerCallback`; the hooks below are
    called by the engine, in the order in which they stand here. Methods compose in a list.

    `rehearses` says whether it looks at old rows; `needs` whether it works on LoRA or on whole
    weights alone. `reshapes` says whether it changes which weights there are, `follows` whether it
    compares weights, by their names, with those of an earlier task: of a list one method at most
    reshapes, stands first and goes with none that follows. `begin_phase` and `end_phase` say when
    its `begin_task` and `end_task` come among those of a list (`train/lifecycle.py`). `neutral`
    holds keywords with which the method's code runs and the result is bitwise that of `sequential`;
    None if there are none (the docstring says why). `presets` are published sets of keywords by
    name, `left_open` says why a keyword of theirs is our choice, `trained_with` the `training:` of
    their source.
    """

    family: ClassVar[Family]
    paper: ClassVar[str | None] = None
    rehearses: ClassVar[bool] = False
    needs: ClassVar[Literal["lora", "whole"] | None] = None
    reshapes: ClassVar[bool] = False
    follows: ClassVar[bool] = False
    begin_phase: ClassVar[Literal[0, 1]] = 0
    end_phase: ClassVar[Literal[0, 1, 2]] = 0
    neutral: ClassVar[dict[str, Any] | None] = None
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    left_open: ClassVar[dict[str, dict[str, str]]] = {}
    trained_with: ClassVar[dict[str, dict[str, Any]]] = {}

    context: TaskContext
    engine: Engine

    @property
    def name(self) -> str:
        """The name of the method's file or folder, which is what users type."""
        return type(self).__module__.removesuffix(".method").rpartition(".")[2]

    @property
    def period(self) -> int:
        """After how many optimizer steps `on_step_end` has more to do; 1 if each is alike."""
        return 1

    def check(self, config: Config, kind: Kind) -> None:
        """Refuse settings under which it cannot work, before anything is trained or written.

        Raises:
            EngramError: with the setting to change.
        """
        lora = config.adapter is not None and config.adapter.get("peft_type", "LORA") == "LORA"
        if self.needs == "whole" and config.adapter is not None:
            raise EngramError(f"{self.name}: works on whole weights; set adapter=null")
        if self.needs == "lora" and not lora:
            raise EngramError(f"{self.name}: works on LoRA's factors; set adapter={{}}")
        if self.rehearses and not config.memory.ratio and config.general.file is None:
            raise EngramError(
                f"{self.name}: remembers rows, and memory.ratio is 0; set memory.ratio=0.02"
            )

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        """Before the Trainer is built, so before an optimizer sees the parameters.

        In phase 0 the model has the weights with which the stage before ended.
        """
        self.context = context
        return model

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer | None:
        """An optimizer in place of the Trainer's, or None."""
        return None

    def rehearse(self, batch: int, size: int) -> list[dict[str, Any]]:
        """Features of old rows to add to micro-batch number `batch`, from 0, of `size` new rows."""
        return []

    def before_step(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Before the forward pass of each micro-batch."""
        return inputs

    def extra_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], outputs: Any
    ) -> Tensor | None:
        """A term beside the task loss: a mean over the micro-batch, or a constant of the weights.

        The engine weighs it by the micro-batch's share of the learned tokens of the whole step.
        """
        return None

    def edit_gradients(self, model: nn.Module) -> None:
        """Once an optimizer step: gradients complete and synchronised, not clipped yet."""

    def end_task(self, model: nn.Module) -> None:
        """After training, before scoring, in the order of the phases."""

    def next_start(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Around a look at the weights with which the next task will begin.

        They are those with which the stage ends, unless this method's `begin_task` changes them.
        """
        return nullcontext()

    def inference(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Around evaluation and generation."""
        return nullcontext()

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors to save with every checkpoint of the task and with the stage."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up the state of a checkpoint; comes after `on_train_begin`."""
