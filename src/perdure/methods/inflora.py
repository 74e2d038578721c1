"""Interference-free low-rank adapters."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perdure.config import Config
from perdure.errors import PerdureError
from perdure.methods.shared import adapter_bank
from perdure.methods.shared.fisher import drawn_rows
from perdure.methods.shared.lora import factors, layers
from perdure.methods.shared.subspace import Span, grown, leading
from perdure.models.kinds import Kind
from perdure.train.method import Engine, Family, Keeps, Method, TaskContext
from perdure.train.parameters import Named


def second_moments(
    engine: Engine, modules: Mapping[str, Any], rows: Sequence[dict[str, Any]]
) -> Named:
    """C, the mean of x x^T over the input tokens x of each module: [inputs, inputs], in fp32.

    It is zero for a module without input. Rows are processed one at a time, so that none is padded:
    in an encoder-decoder it would be unclear which of the two masks belongs to a module's input.
    """
    sums: Named = {}
    counts = dict.fromkeys(modules, 0)

    def adding_to(name: str):
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            with torch.autocast(args[0].device.type, enabled=False):
                x = args[0].detach().float().flatten(0, -2)
                sums[name] = x.mT @ x + sums.get(name, 0)
            counts[name] += len(x)

        return hook

    hooks = [module.register_forward_pre_hook(adding_to(name)) for name, module in modules.items()]
    for row in rows:
        engine.look([row])
    for hook in hooks:
        hook.remove()
    for name, module in modules.items():
        sums.setdefault(name, torch.zeros(module.in_features, module.in_features))
    return {name: sums[name] / max(1, counts[name]) for name in modules}


class InfLoRA(Method):
    """Trains only B of each task's LoRA; A is fixed to directions outside the old tasks' inputs.

        A_t = (r leading left singular vectors of (I - P) C_t)^T / sqrt(3),   B_t = 0 at the start

    C_t is the mean of x x^T over the tokens x that are a layer's inputs for the task's rows, and P
    projects onto the span of the old tasks' inputs: the new adapter does not react to those inputs
    (Liang & Li 2024, 2404.00228). After a task, the span is extended by as few directions as it
    needs to hold the share `threshold` of ||C||^2, as in the authors' code. This is the sum of C's
    squared eigenvalues; GPM takes the share of the sum of the eigenvalues, which needs more
    directions. If a span has more than half of the dimensions, its complement is stored (DualGPM).
    The adapters are joined by rank and stored as in `olora`. As A is not trained, `recurrent_kif`
    with `unit: row` is refused beside it.

    The authors raise the threshold to 1 over the tasks; here the number of tasks is not known. They
    adapt keys and values; here `target_modules` decides. They do not scale the adapter; here it is
    scaled by its lora_alpha / r. If fewer than r directions are left, the other rows of A are zero.
    An encoder's head is trained as usual.

    State: a basis for each layer, at most half of [inputs, inputs], which each stage stores whole
    (each task turns all columns of a complement, so none of them stands in an earlier stage); the
    adapter grows, O(tasks). Old rows: none. Cost: `rows` forward passes before and after each task,
    one row at a time; a matrix [inputs, inputs] and its eigenvectors for each layer. The first task
    is not plain fine-tuning, because its A is chosen too, so there are no neutral keywords.

    Args:
        threshold: the share of C's squared norm that the span must hold, between 0 and 1.
        rows: how many rows of the task are drawn to measure C; all of them if it has fewer.
    """

    family: ClassVar[Family] = "adapters"
    paper: ClassVar[str] = "https://huggingface.co/papers/2404.00228"
    needs: ClassVar[Literal["lora"]] = "lora"
    reshapes: ClassVar[bool] = True
    keeps: ClassVar[Keeps] = Keeps(share=0.25, second_loss=0.2)

    def __init__(self, threshold: float = 0.98, rows: int = 256):
        if not 0 < threshold < 1 or rows < 1:
            raise PerdureError(
                f"inflora: needs 0 < threshold < 1 and rows >= 1, got {threshold} and {rows}"
            )
        self.threshold, self.rows = threshold, rows
        self.rank_of_task: int | None = None

    def check(self, config: Config, kind: Kind) -> None:
        super().check(config, kind)
        adapter_bank.check(self.name, config)
        self.rank_of_task = adapter_bank.rank_of_task(config)

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        stored_rank = adapter_bank.rank(model)  # of all tasks, if other methods have joined some
        self.rank = context.state.get("rank", torch.tensor(self.rank_of_task or stored_rank))
        self.spans = _spans(context.state)
        learned = context.state or any(f.b.any() for f in factors(model).values())
        if learned:
            adapter_bank.add(model, int(self.rank), context.seed)
        trained = factors(model, adapter_bank.NEW if learned else adapter_bank.OLD)
        self.a = {name: f.a for name, f in trained.items()}
        for a in self.a.values():
            a.requires_grad_(False)
        return super().begin_task(model, context)

    @torch.no_grad()
    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step:  # the run is resumed, and A is in the checkpoint
            return
        assert model is not None
        for name, moment in self._moments(model).items():
            a = self.a[name]
            directions, _ = leading(moment, self._span(name, moment).free())
            chosen = directions[:, : len(a)].mT / math.sqrt(3)
            a.zero_()[: len(chosen)] = chosen

    @torch.no_grad()
    def end_task(self, model: nn.Module) -> None:
        for name, moment in self._moments(model).items():
            self.spans[name] = grown(self._span(name, moment), moment, self.threshold)
            self.a[name].requires_grad_(True)
        self.a = {}
        adapter_bank.join(model)

    def _moments(self, model: nn.Module) -> Named:
        rows = drawn_rows(self.engine.train_dataset, self.rows, self.context.seed)
        return second_moments(self.engine, dict(layers(model)), rows)

    def _span(self, name: str, moment: Tensor) -> Span:
        span = self.spans.get(name, Span(moment[:, :0]))
        return Span(span.basis.to(moment.device), span.outside)

    def state_dict(self) -> dict[str, Tensor]:
        spans = {f"{'free' if s.outside else 'used'}.{n}": s.basis for n, s in self.spans.items()}
        return {"rank": self.rank, **spans, **{f"a.{n}": a.detach() for n, a in self.a.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.rank, self.spans = state["rank"], _spans(state)
        for name, a in self.a.items():
            a.copy_(state[f"a.{name}"])


def _spans(state: dict[str, Tensor]) -> dict[str, Span]:
    """The layers' spans: `used.LAYER` is a basis of the span, `free.LAYER` of its complement."""
    spans = {}
    for key, basis in state.items():
        prefix, _, name = key.partition(".")
        if prefix in ("used", "free"):
            spans[name] = Span(basis, outside=prefix == "free")
    return spans
