"""The old model as a teacher of the new one, on the current batch."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.models.adapter_disabled import adapter_disabled
from perdure.models.classifier import Classifier
from perdure.models.kinds import Kind
from perdure.train.parameters import snapshot
from perdure.train.step import task_loss


Source = Literal["previous", "base"]


class Teacher:
    """The model with the weights of the previous stage, or the base with its adapter disabled.

    It shares all frozen weights with the student, and runs in evaluation mode without gradients. It
    must be created in `begin_task`, where the weights are those of the previous stage, also when a
    run is resumed.
    """

    def __init__(self, model: nn.Module, source: Source):
        self.old = snapshot(model) if source == "previous" else None

    @torch.no_grad()
    def __call__(self, model: Any, inputs: dict[str, Tensor], kind: Kind) -> Any:
        """The teacher's outputs on a batch; `model` is the student."""

        def teacher(**arguments: Tensor) -> Any:
            if self.old is not None:
                return functional_call(model, self.old, args=(), kwargs=arguments)
            with adapter_disabled(model):
                return model(**arguments)

        training = model.training
        model.eval()
        _, outputs = task_loss(teacher, model, inputs, kind)  # type: ignore[arg-type]
        model.train(training)
        return outputs


class HeadInputs:
    """The last inputs of the output head, in the passes of the student and of the teacher.

    The pass without gradients is the teacher's. A forward hook records both until `close`.
    """

    def __init__(self, model: nn.Module):
        self.last: dict[bool, Tensor] = {}
        self.hook = head(model).register_forward_pre_hook(self._record)

    def _record(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.last[torch.is_grad_enabled()] = inputs[0]

    @property
    def student(self) -> Tensor:
        return self.last[True]

    @property
    def teacher(self) -> Tensor:
        return self.last[False]

    def close(self) -> None:
        self.hook.remove()
        self.last = {}


def head(model: Any) -> nn.Module:
    """The output head, which may be wrapped in an adapter; for an encoder, its pooling layer.

    Raises:
        PerdureError: the model has no `get_output_embeddings`.
    """
    module = model.pooled if isinstance(model, Classifier) else model.get_output_embeddings()
    if module is None:
        raise PerdureError("base: the model does not name its output head; use lwf, on its logits")
    return module


def check_base(
    name: str,
    config: Config,
    kind: Kind,
    keyword: str = "teacher",
    needs_logits: bool = False,
) -> None:
    """Refuse settings with which the base cannot be the teacher.

    Args:
        name: the name of the method.
        config: the settings of the lineage.
        kind: the kind of the model.
        keyword: the method's keyword that says `base`.
        needs_logits: whether the method compares logits.

    Raises:
        PerdureError: there is no adapter to disable, disabling it does not give the base, or the
            base has no head.
    """
    if config.adapter is None:
        raise PerdureError(
            f"{name}: {keyword} base is the base with its adapter disabled, and all weights are "
            f"trained here (adapter: null); set adapter={{}} or {keyword} previous"
        )
    if kind == "encoder" and needs_logits:
        raise PerdureError(
            f"{name}: teacher base needs logits, which an encoder's base does not have; use "
            "teacher previous"
        )
    bias = config.adapter.get("bias", "none")
    if kind == "encoder" and bias != "none":  # `init` tries the adapters of other kinds
        raise PerdureError(
            f"{name}: {keyword} base is the base with its adapter disabled, and biases that are "
            f"trained (adapter.bias={bias}) stay as trained; leave bias out, or use {keyword} "
            "previous"
        )
