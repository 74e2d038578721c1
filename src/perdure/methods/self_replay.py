"""Self-replay: rows that the model wrote itself, in every batch."""

import warnings
from typing import Any, ClassVar

from torch import Tensor, nn

from perdure.config import Config
from perdure.data.tokens import Features
from perdure.errors import PerdureError
from perdure.methods.shared.rehearsal_ratio import RehearsalRatio
from perdure.methods.shared.teacher import Source, check_base
from perdure.methods.shared.written_rows import stacked, unstacked, write_rows
from perdure.models.kinds import Kind
from perdure.seeds import derive
from perdure.train.memory import Memory
from perdure.train.method import Family, Keeps, Method, TaskContext


class SelfReplay(Method):
    """Adds rows to every batch that the model itself wrote before the task.

        loss = (sum over new and written tokens of cross-entropy) / (number of both)

    This is for models whose old data is gone. Before the first step of a task, the model writes
    `rows` rows: a base with a chat template writes a message where the template has the user's, as
    in Magpie (Xu et al. 2024, 2406.08464), and then the answer to it, which is learned; another
    base writes a text from its beginning-of-text token. Left out are rows that are empty, whose
    text or message another row has, or that repeat themselves, and messages that are cut after
    `max_new_tokens` tokens. An answer or a text that is cut there is rehearsed without an end. If
    nothing is left, there is a warning, and the task is learned as with `sequential`. The rows are
    rehearsed as `replay` rehearses remembered ones. At temperature 1, and but for what is left out,
    the expected gradient on a row is that of KL(model that wrote it || model) over the whole text.

    With `source` `previous` the rows are written with the weights with which the task begins, so
    they also have something of earlier tasks, and of their damage. With `base` they are written by
    the base with its adapter disabled, which protects what was learned in pre-training alone. Both
    are the same at the first task, where the method already has an effect.

    The idea is from 2605.26097, of which we could read only the abstract and the authors' code.
    There new rows are sampled during the whole training, by the model before it, at temperature 1.
    Their loss has a weight of its own, of 1 to 10 for a chat model, and is mostly the KL of the two
    models' predictions; `[self_replay, kl_base]` adds the KL to the base here. A fixed number of
    rows with their tokens as labels, the chat form and the filter are ours. So are the defaults,
    which were not chosen on held-out rows.

    State: the written rows while a task is learned; none after it. Old rows: none. Cost: the rows
    are written token by token once a task, counted as one forward pass of each text, message and
    answer; the written rows in every batch. `--dry-run` does not estimate the writing.

    Args:
        rows: how many rows the model writes before a task, >= 0.
        ratio: the number of written rows for each new row, >= 0, as for `replay`.
        source: `previous` or `base`: the model that writes.
        temperature: divides the logits from which tokens are drawn, above 0.
        max_new_tokens: the most tokens of a text, a message or an answer, >= 1.
    """

    family: ClassVar[Family] = "rehearsal"
    paper: ClassVar[str] = "https://huggingface.co/papers/2605.26097"
    kinds: ClassVar[tuple[Kind, ...]] = ("causal",)  # others write nothing without a prompt
    neutral: ClassVar[dict[str, Any]] = {"ratio": 0.0}
    # What that stream's model writes hardly resembles its questions: a chat model was trained to.
    keeps: ClassVar[Keeps] = Keeps(
        share=0.15, second_loss=0.5, keywords={"rows": 256, "ratio": 2.0}
    )

    def __init__(
        self,
        rows: int = 32,
        ratio: float = 0.5,
        source: Source = "previous",
        temperature: float = 1.0,
        max_new_tokens: int = 64,
    ):
        if rows < 0 or ratio < 0:
            raise PerdureError(
                f"self_replay: rows and ratio must be >= 0, got {rows} and {ratio}; "
                "with 0 of either nothing is rehearsed"
            )
        if temperature <= 0 or max_new_tokens < 1:
            raise PerdureError(
                "self_replay: needs temperature > 0 and max_new_tokens >= 1, got "
                f"{temperature} and {max_new_tokens}"
            )
        self.source: Source = source
        self.rows, self.temperature = rows, temperature
        self.max_new_tokens, self.schedule = max_new_tokens, RehearsalRatio(ratio)

    def check(self, config: Config, kind: Kind) -> None:
        super().check(config, kind)
        if self.source == "base":
            check_base(self.name, config, kind, keyword="source")

    def begin_task(self, model: nn.Module, context: TaskContext) -> nn.Module:
        self.written: list[Features] = []
        self.memory = Memory({}, seed=0)
        return super().begin_task(model, context)

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self.schedule.begin(args, train_dataloader, state.max_steps)
        # A resumed run gets the rows of its checkpoint: its model is no longer the one that wrote.
        if self.rows and state.global_step == 0:
            self._remember(self._write())

    def _write(self) -> list[Features]:
        written = write_rows(
            self.engine.base,
            self.engine.passes,
            rows=self.rows,
            source=self.source,
            seed=derive(self.context.seed, "write"),
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
        )
        if not written:
            warnings.warn(
                f"self_replay: none of the {self.rows} rows that the model wrote can be rehearsed "
                "(they are empty, cut or repetitive), so the task is learned without them; raise "
                "rows or max_new_tokens",
                stacklevel=2,
            )
        return written

    def _remember(self, written: list[Features]) -> None:
        self.written = written
        self.memory = Memory({"(written)": written}, derive(self.context.seed, "draws"))

    def rehearse(self, batch: int, size: int) -> list[dict[str, Any]]:
        return self.schedule.draw(self.memory, self.engine.args, batch=batch, size=size)

    def on_train_end(self, args, state, control, **kwargs):
        self._remember([])

    def state_dict(self) -> dict[str, Tensor]:
        return stacked(self.written)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._remember(unstacked(state))
