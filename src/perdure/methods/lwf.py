"""Learning without forgetting."""

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.methods.shared.teacher import Source, Teacher, check_base
from perdure.models.kinds import Kind
from perdure.train.method import Family, Keeps, Method, TaskContext
from perdure.train.parameters import known_labels, old_labels


KL_BASE_STRENGTH = "our value, tried against 0.05, 0.1 and 0.4 on held-out rows of one order"


class LwF(Method):
    """Keeps the model's answers to new rows near those of the old model.

        loss = task + strength T^2 mean KL(softmax(z_old / T) || softmax(z / T))

    over the positions of the answer, not of the prompt (Li & Hoiem 2016, 1606.09282). The teacher
    is the model with the weights of the previous stage, or (`base`) the base with its adapter
    disabled, which protects what was learned in pre-training, from the first task on. The teacher
    runs in evaluation mode. New labels of an encoder are left out. Many implementations leave out
    T^2; with T = 2, the same strength is four times weaker there. The default of the strength is
    this project's own (benchmarks/README.md, `defaults.py`). With `previous`, the term and its
    gradient are zero at the start of a task.

    The preset `kl_base` anchors the answers to the base without tempering (2512.22337). It is meant
    to protect the general ability of a chat model. `method: kl_base` is short for it. It needs an
    adapter, since the teacher is the base with the adapter disabled.

    State: a copy of the trained weights while a task is learned; after it only the number of an
    encoder's labels. Old rows: none. Cost: one more forward pass on every batch.

    Args:
        strength: the factor of the term, >= 0.
        temperature: T, above 0.
        teacher: `previous` or `base`.
    """

    family: ClassVar[Family] = "distillation"
    paper: ClassVar[str] = "https://huggingface.co/papers/1606.09282"
    end_phase: ClassVar[Literal[2]] = 2  # other methods may still take steps at a task's end
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "kl_base": {"strength": 0.2, "temperature": 1.0, "teacher": "base"}
    }
    left_open: ClassVar[dict[str, dict[str, str]]] = {"kl_base": {"strength": KL_BASE_STRENGTH}}
    keeps: ClassVar[Keeps] = Keeps(share=0.55, keywords={"strength": 1.0})

    def __init__(
        self,
        strength: float = 2.0,
        temperature: float = 2.0,
        teacher: Source = "previous",
    ):
        if strength < 0 or temperature <= 0:
            raise PerdureError(
                f"lwf: needs strength >= 0 and temperature > 0, got {strength} and {temperature}"
            )
        self.strength, self.temperature = strength, temperature
        self.source: Source = teacher

    def check(self, config: Config, kind: Kind) -> None:
        super().check(config, kind)
        if self.source == "base":
            check_base(self.label, config, kind, needs_logits=True)

    def why_not_sharded(self) -> str | None:
        if self.source == "base":
            return None
        return "of the previous stage needs its whole weights a second time (teacher base does not)"

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.labels = old_labels(context)
        has_teacher = context.stage > 1 or self.source == "base"
        has_teacher &= self.labels is None or bool(self.labels)  # an encoder's first head has none
        self.teacher = Teacher(model, self.source) if has_teacher else None
        return super().begin_task(model, context)

    def extra_loss(self, model: nn.Module, inputs: dict[str, Tensor], outputs: Any) -> Any:
        if self.teacher is None:
            return None
        teacher_outputs = self.teacher(self.model, inputs, self.engine.kind)
        old = self._old_logits(teacher_outputs) / self.temperature
        new = self._old_logits(outputs) / self.temperature
        distance = nn.functional.kl_div(
            new.log_softmax(-1), old.log_softmax(-1), reduction="batchmean", log_target=True
        )
        return self.strength * self.temperature**2 * distance

    def _old_logits(self, outputs: Any) -> Tensor:
        """The logits [positions, choices] of the answers, without an encoder's new labels."""
        logits = outputs.logits if self.labels is None else outputs.logits[:, : int(self.labels)]
        return logits.float()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.model = model

    def end_task(self, model: nn.Module) -> None:
        self.teacher, self.labels = None, known_labels(model).get("labels")

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.labels is None else {"labels": self.labels}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.labels = state.get("labels")
