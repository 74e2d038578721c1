"""Recurrent-KIF: recurrent knowledge identification and fusion."""

import warnings
from dataclasses import KW_ONLY, InitVar, dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from perdure.config import Config
from perdure.data.tokens import Features
from perdure.errors import PerdureError, nearest
from perdure.methods.recurrent_kif.callback import StandaloneMethod
from perdure.methods.recurrent_kif.fusion import FusionTable, Momentum, Soft, after_fusion
from perdure.methods.recurrent_kif.outer import OuterLearner
from perdure.methods.recurrent_kif.presets import OPEN, RECURRENT_KIF, TRAINING
from perdure.methods.recurrent_kif.rates import Rates
from perdure.methods.recurrent_kif.rounds import Extent, Restore, Rounds, table_of
from perdure.methods.recurrent_kif.rows import RowRounds, adapters_of, check_lora
from perdure.methods.shared.importance import Importance
from perdure.methods.shared.written_rows import stacked, unstacked, write_rows
from perdure.models.kinds import Kind
from perdure.seeds import derive
from perdure.train.memory import Memory
from perdure.train.method import Family, Keeps, TaskContext
from perdure.train.step import rows_of_a_step


WRITTEN = "(written)"  # the name of the base's own rows among the old tasks
WRITTEN_TOKENS = 64  # the most tokens of a message or an answer that the base writes
IMPORTANT = "important."  # the prefix of a parameter's name in the state


@dataclass(eq=False)
class RecurrentKIF(StandaloneMethod):
    """Identifies in short rounds which weights new and old tasks need, and fuses both updates.

    In a round, Q = `inner_steps` optimizer steps on the new task change the weights from t0 to tQ;
    then S = `outer_steps` steps on memory, by a second AdamW, change them to tS. Each side smooths
    the sensitivity |w g| of its gradients (before clipping, at the weights at which they were
    computed) over its steps; the weights above the global `quantile` are important to that side.
    Then

        t0' = t0 + w_in (tQ - t0) + w_out (tS - tQ)

    with (w_in, w_out) from `fusion`, and the next round starts from t0'. The inner map starts from
    zero in each round, the outer one in each task. The last, shorter round is fused too. The first
    task is plain fine-tuning.

    The outer steps of a round have the mean rate of its inner steps, so the ratio of the two
    updates is S to Q at any point of any schedule.

    State: t0, two maps (four with the uncertainty) and the outer optimizer's two moments, each of
    the trainable weights' size, O(1) in tasks: 20 bytes a weight in fp32, 14 with
    `states: bfloat16`, and none of them on the device with `offload`. Beyond these, neither a step
    nor a fusion needs more memory for more weights. After the task only counts are stored: the
    shares of the four cases in each round, and how many weights of each parameter were important to
    either side. Old rows: needed. Cost: S/Q more steps, each on `outer_ratio` times the rows of a
    training step: 1.5 times the passes of `sequential`, and up to 3 times with the preset
    `lasting`. The last round of a task has S steps on memory, too, however short it is.

    The presets `paper` and `release` are those of the two sources. `lasting` is this project's: the
    outer map hardly fades from round to round, a weight that neither side needs keeps the new
    update, and a memory step has four times the rows of a training step. It was measured on a chat
    model beside `kl_base` (docs/identification.md), and `[{recurrent_kif: {preset: lasting}},
    kl_base]` is what `perdure init` chooses for a generative model.

    It is also a callback of any `transformers.Trainer`, including SFTTrainer:
    `RecurrentKIF(memory=...)`, with a dataset of features or raw rows, or a mapping of task names
    to datasets (docs/trl.md).

    Args:
        inner_steps: Q, the steps on the new task in a round.
        outer_steps: S, the steps on memory in a round.
        quantile: the share of the weights that are not important, 0 to 1.
        fusion: (w_in, w_out) for weights important to `both`, `inner`, `outer` or `neither`; null
            uses the paper's. {soft: T}: w_in = 1 - w_out = e^(a/T) / (e^(a/T) + e^(b/T)), where a
            and b are the inner and outer score of the weight, scaled to 0..1.
        refresh: whether the outer map is updated after the first round of a task. If not, the map
            of that round is used throughout (the paper's ablation, as a control).
        score: `sensitivity`, or `sensitivity_uncertainty` (times the smoothed deviation).
        beta_inner: the smoothing of the inner map, 0 (none) to less than 1.
        beta_outer: the smoothing of the outer map.
        beta_uncertainty: the smoothing of the deviation of both maps.
        outer_learning_rate: the rate of the memory steps; null uses that of the training.
        outer_schedule: `inner` (the rate times the mean of the training's schedule over the steps
            of the round) or `constant`.
        outer_batch_size: the number of remembered rows in a memory step, whatever `outer_ratio` is;
            null uses that.
        outer_ratio: the remembered rows in a memory step for each row of a full training step, over
            all processes, above 0. A memory of fewer rows is learned as a whole in each step.
        outer_optimizer: `own`, or `shared`: the training's optimizer takes the memory steps, at the
            mean rate of the round, and its moments mix both sides. This is a control, for a fault
            of the released code.
        momentum: what happens to the inner optimizer's first moment at a fusion: `keep`, `reset`,
            or `scale` (multiplied by the share of tQ - t0 that the fusion kept).
        quantile_over: what the quantile is taken over: `all` weights, or the weights of each
            `parameter`, so that no layer can have more than its share of the important ones.
        agree: whether a weight that is important to both sides is important to the outer side only
            if the two updates have opposite signs.
        restore: where a weight that only the old tasks need goes back to before the outer update is
            added: `round`, its value at the start of the round, or `stage`, at the start of the
            task, so that many rounds cannot move it away in small steps.
        shuffled: whether each score is given to another weight at random, to the same one in all
            rounds of a task: among all weights, or among those of its parameter with
            `quantile_over: parameter`. As many weights are masked, for as long, but not those that
            were identified. It is a control: the score that it costs is what identification gains.
        unit: what is identified and fused as one: each `weight`, or each `row` of the product BA of
            a LoRA adapter, which is what the adapter adds to one output of a linear layer. The
            sensitivity of row i is |<B_i, dL/dB_i>|, which is that of the row itself. The rows of
            W0, WQ and WS are fused as above, and the factors nearest to the result are kept
            (`fuse_rows`). Other weights are fused one by one, with a quantile of their own.
        written: how many rows the base itself writes before each task, with its adapter disabled.
            They are one more old task, so that identification protects general ability from the
            first task on, and needs no stored row (`memory.ratio` may be 0). They are written as
            `self_replay` writes them, with at most 64 tokens each.
        states: the data type of the maps, of tQ - t0 and of the outer optimizer's first moment:
            `float32`, or `bfloat16`, which rounds them to 8 bits.
        offload: whether the state is in host memory and goes to the device in pieces; the result is
            the same.
    """

    family: ClassVar[Family] = "recurrent fusion"
    paper: ClassVar[str] = "https://huggingface.co/papers/2502.17510"
    rehearses: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = RECURRENT_KIF
    left_open: ClassVar[dict[str, dict[str, str]]] = OPEN
    trained_with: ClassVar[dict[str, dict[str, Any]]] = TRAINING
    neutral: ClassVar[dict[str, Any]] = {"fusion": dict.fromkeys(FusionTable._fields, (1, 0))}
    keeps: ClassVar[Keeps] = Keeps(share=0.75, second_loss=0.5)

    inner_steps: int = 8
    outer_steps: int = 4
    quantile: float = 0.8
    fusion: dict = None  # type: ignore[assignment]  # that of the paper
    refresh: bool = True
    score: Literal["sensitivity", "sensitivity_uncertainty"] = "sensitivity"
    beta_inner: float = 0.55
    beta_outer: float = 0.55
    beta_uncertainty: float = 0.55
    outer_learning_rate: float | None = None
    outer_schedule: Literal["inner", "constant"] = "inner"
    outer_batch_size: int | None = None
    outer_ratio: float = 1.0
    outer_optimizer: Literal["own", "shared"] = "own"
    momentum: Momentum = "keep"
    quantile_over: Extent = "all"
    agree: bool = False
    restore: Restore = "round"
    shuffled: bool = False
    unit: Literal["weight", "row"] = "weight"
    written: int = 0
    states: Literal["float32", "bfloat16"] = "float32"
    offload: bool = False
    _: KW_ONLY
    memory: InitVar[Any] = None

    @classmethod
    def from_preset(cls, preset: str, **keywords: Any) -> "RecurrentKIF":
        """The method with the keywords of a preset, such as `lasting`.

        Args:
            preset: `paper`, `release` or `lasting`.
            keywords: further keywords, `memory` among them, which override those of the preset.

        Raises:
            PerdureError: there is no such preset.
        """
        if preset not in cls.presets:
            raise PerdureError(
                f"recurrent_kif: unknown preset {preset!r}; {nearest(preset, cls.presets)}"
            )
        return cls(**{**cls.presets[preset], **keywords})

    def __post_init__(self, memory: Any):
        self.memory_rows = memory
        self.table = table_of(self.fusion or RECURRENT_KIF["paper"]["fusion"])
        if self.inner_steps < 1 or self.outer_steps < 0 or not 0 <= self.quantile <= 1:
            raise PerdureError(
                "recurrent_kif: needs inner_steps >= 1, outer_steps >= 0 and 0 <= quantile <= 1, "
                f"got {self.inner_steps}, {self.outer_steps} and {self.quantile}"
            )
        for name in ("beta_inner", "beta_outer", "beta_uncertainty"):
            if not 0 <= getattr(self, name) < 1:
                raise PerdureError(
                    f"recurrent_kif: {name} must be at least 0 and below 1, got "
                    f"{getattr(self, name)}"
                )
        if self.restore == "stage" and isinstance(self.table, Soft):
            raise PerdureError(
                "recurrent_kif: soft weights have no case of the old tasks alone, so restore: "
                "stage has nothing to restore; leave out one of the two"
            )
        if self.unit == "row":
            self._check_rows()
        if self.written < 0:
            raise PerdureError(f"recurrent_kif: written must be >= 0, got {self.written}")
        rate, rows = self.outer_learning_rate, self.outer_batch_size
        if (rate is not None and rate < 0) or (rows is not None and rows < 1):
            raise PerdureError(
                "recurrent_kif: needs outer_learning_rate >= 0 and outer_batch_size >= 1, got "
                f"{rate} and {rows}; null uses those of the training"
            )
        if self.outer_ratio <= 0:
            raise PerdureError(
                f"recurrent_kif: outer_ratio must be above 0, got {self.outer_ratio}; 1 takes as "
                "many remembered rows in a memory step as a training step has"
            )

    def _check_rows(self) -> None:
        defaults = {"agree": False, "restore": "round", "quantile_over": "all", "shuffled": False}
        defaults |= {"states": "float32", "offload": False}
        others = [name for name, value in defaults.items() if getattr(self, name) != value]
        others += ["fusion: soft"] if isinstance(self.table, Soft) else []
        if others:
            raise PerdureError(
                f"recurrent_kif: {others[0]} is of single weights, and unit is row; leave out one "
                "of the two"
            )

    def check(self, config: Config, kind: Kind) -> None:
        if self.unit == "row":
            check_lora(config.adapter)
        if not self.written:
            return super().check(config, kind)
        if kind != "causal":
            raise PerdureError(
                f"{self.name}: written: a base of kind {kind} writes nothing without a prompt; "
                "leave it out"
            )
        if config.adapter is None:
            raise PerdureError(
                f"{self.name}: written: the base with its adapter disabled writes the rows, and "
                "all weights are trained here (adapter: null); set adapter={}"
            )

    def why_not_sharded(self) -> str | None:
        if self.shuffled:
            return "gives scores to other weights (shuffled)"
        return "fuses whole rows (unit: row)" if self.unit == "row" else None

    @property
    def period(self) -> int:
        return self.inner_steps

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.shares: list[Tensor] = []  # of the four cases, one entry for each round
        # By parameter: [weights, important to inner, important to outer], summed over the rounds.
        self.important: dict[str, Tensor] = {}
        self.inner_rates = Rates()  # of the current round
        self.running = False
        self.written_rows: list[Features] = []
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.set_up(args, state, **kwargs)
        if self.written and self.steps:
            raise PerdureError(
                "recurrent_kif: written works in `perdure learn` and `perdure run` only; give rows "
                "of the base's own answers as memory instead"
            )
        self.running = bool(self.context.memory) or self.written > 0
        if self.running:
            self._begin_rounds(args, optimizer, model=kwargs["model"])
            if self.written and state.global_step == 0:  # a resumed run has them in its checkpoint
                self._remember(self._write())
            self.resume(args, state)

    def _begin_rounds(self, args: TrainingArguments, optimizer: Any, model: nn.Module) -> None:
        self.parameters = self.engine.parameters
        trained = model.named_parameters()
        self.names = [name for name, parameter in trained if parameter.requires_grad]
        if self.unit == "row":
            for adapter in adapters_of(model):
                check_lora(adapter)
        self.rounds = self._rounds()
        if isinstance(self.rounds, RowRounds):
            self.names = self.rounds.names
        self.learner = OuterLearner(
            self.engine,
            self.context,
            args,
            optimizer,
            steps=self.outer_steps,
            rate=self.outer_learning_rate,
            constant=self.outer_schedule == "constant",
            rows=self.outer_rows(rows_of_a_step(args)),
            shared=self.outer_optimizer == "shared",
            offload=self.offload,
            states=torch.bfloat16 if self.states == "bfloat16" else None,
        )

    def outer_rows(self, training_rows: int) -> int:
        """The remembered rows in a memory step, where a full training step has `training_rows`."""
        return self.outer_batch_size or max(round(self.outer_ratio * training_rows), 1)

    def _rounds(self) -> Rounds | RowRounds:
        if self.unit == "row":
            assert isinstance(self.table, FusionTable)
            return RowRounds(
                self.parameters,
                self.names,
                self.table,
                score=self.score,
                quantile=self.quantile,
                beta_uncertainty=self.beta_uncertainty,
                momentum=self.momentum,
            )
        shuffle = derive(self.context.seed, "recurrent_kif", "shuffle") if self.shuffled else None
        return Rounds(
            self.parameters,
            self.table,
            score=self.score,
            quantile=self.quantile,
            beta_uncertainty=self.beta_uncertainty,
            momentum=self.momentum,
            states=getattr(torch, self.states),
            offload=self.offload,
            quantile_over=self.quantile_over,
            agree=self.agree,
            restore=self.restore,
            shuffle=shuffle,
        )

    def _write(self) -> list[Features]:
        """The rows that the base writes before the task."""
        written = write_rows(
            self.engine.base,
            self.engine.passes,
            rows=self.written,
            source="base",
            seed=derive(self.context.seed, "write"),
            max_new_tokens=WRITTEN_TOKENS,
        )
        if not written:
            warnings.warn(
                f"recurrent_kif: none of the {self.written} rows that the base wrote can be "
                "rehearsed (they are empty, cut or repetitive); raise written",
                stacklevel=2,
            )
        return written

    def _remember(self, written: list[Features]) -> None:
        """Take the outer steps on these rows, too; without any rows there are none."""
        self.written_rows = written
        memory = self.context.memory
        self.learner.memory = Memory({**memory.tasks, WRITTEN: written}, memory.seed)
        self.running = bool(self.learner.memory)

    def edit_gradients(self, model: nn.Module) -> Tensor | None:
        return self._observe(self.rounds.inner, self.beta_inner) if self.running else None

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        if self.running:
            self.inner_rates.record(optimizer)

    def on_step_end(self, args, state, control, **kwargs):
        round_is_over = state.global_step % self.inner_steps == 0
        if self.running and (round_is_over or state.global_step == state.max_steps):
            self.rounds.end_inner_steps()
            self._outer_steps(self.inner_rates.mean())
            self.inner_rates.clear()
            kept, shares, counts = self.rounds.fuse()
            after_fusion(self.momentum, kwargs["optimizer"], kept)
            self.shares.append(shares)
            for name, count in zip(self.names, counts, strict=True):
                self.important[name] = self.important.get(name, 0) + count

    def _observe(self, maps: Importance, beta: float) -> Tensor | None:
        return self.rounds.observe(maps, beta)

    def _outer_steps(self, inner_rates: list[float]) -> None:
        """Take the outer steps on memory, from tQ to tS; their gradients update the outer map.

        `inner_rates` are the mean rates of the round's inner steps, one for each parameter group.
        """
        round_number = len(self.shares)
        observe = partial(self._observe, self.rounds.outer, self.beta_outer)
        inspect = observe if self.refresh or round_number == 0 else lambda: None
        self.learner.learn(round_number, inner_rates, inspect)

    def end_task(self, model: nn.Module) -> None:
        if self.running:
            self.running = False
            del self.rounds, self.learner
            self.written_rows = []

    def state_dict(self) -> dict[str, Tensor]:
        state = {"shares": torch.stack(self.shares)} if self.shares else {}
        state |= {f"{IMPORTANT}{name}": count for name, count in self.important.items()}
        if not self.running:
            return state
        state |= self.inner_rates.state_dict()
        state |= {f"{WRITTEN}.{k}": v for k, v in stacked(self.written_rows).items()}
        return state | self.rounds.tensors() | self.learner.tensors()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.shares = list(state["shares"]) if "shares" in state else []
        self.important = {
            name.removeprefix(IMPORTANT): tensor
            for name, tensor in state.items()
            if name.startswith(IMPORTANT)
        }
        self.running = self.running and "start" in state  # the base may have written no rows
        if self.running:
            self.inner_rates.load_state_dict(state)
            self.rounds.load(state)
            self.learner.load(state)
            if self.written:
                start = f"{WRITTEN}."
                stored = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
                self._remember(unstacked(stored))
