"""The records of a stage: `scores.json` and `verdict.json`, and what must be in them.

Their hashes are in the ledger, but a stranger can write these too, so what is in them is checked
before it is used. Further keys may be there.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from perdure.errors import PerdureError
from perdure.lineage.schema import Count
from perdure.parsing import UnreadableError, read_json
from perdure.shapes import Rule, check_shape


Interval = Annotated[list[float], Rule("[low, high]", lambda values: len(values) == 2)]


class Cell(TypedDict):
    """The score of a task, null if it is unknown, and how it was measured.

    If only `rows` of its test rows were asked, `of` is the number of all of them.
    """

    score: float | None
    mode: NotRequired[str]
    metric: NotRequired[str]
    rows: NotRequired[Count]
    truncated: NotRequired[Count]
    of: NotRequired[Count]
    interval: NotRequired[Interval]


class Point(TypedDict):
    """What was measured on dev rows after a step; null is a value that was not finite."""

    step: Count
    loss: float | None
    score: NotRequired[float | None]


class Dev(TypedDict):
    """What was measured on dev rows while the stage was learned."""

    rows: Count
    metric: Literal["loss", "score"]
    curve: list[Point]
    best: Count | None
    weights_of: Count
    stopped: bool


class Scores(TypedDict):
    """The scores that were measured at a stage, by task."""

    base: dict[str, Cell]
    before: dict[str, Cell]
    after: dict[str, Cell]
    dev: NotRequired[Dev]


class Change(TypedDict):
    """How the answers to a task have changed (`perdure.measure.verdict.Change`)."""

    before: float | None
    after: float
    rows: Count
    fell: Count
    rose: Count
    p: float
    collapse: str | None
    of: NotRequired[Count]
    first: NotRequired[float]


class Together(Change):
    """How the answers to the sampled rows of all old tasks together have changed."""

    lost: bool
    lost_before: bool


class Part(TypedDict):
    """Whether a part of general ability is lost, and whether it was before the stage."""

    lost: bool
    lost_before: NotRequired[bool]


class LmEvalTask(Part):
    """What is left of a task of lm-eval."""

    metric: str
    documents: Count
    before: float | None
    now: float | None
    fell: Count
    rose: Count
    p: float


class Form(TypedDict):
    """The form of answers: their mean number of tokens, and two shares."""

    tokens: float
    empty: float
    equal: float


class Skill(TypedDict):
    """How many checks of a skill fail that passed before."""

    fell: Count


class Unmeasured(TypedDict):
    """General ability whose rows were not asked, with the reason."""

    unmeasured: str
    lost: NotRequired[bool]
    lost_before: NotRequired[bool]
    checks: NotRequired[Part]
    lm_eval: NotRequired[dict[str, LmEvalTask]]


class Measured(Part):
    """General ability against the untouched base (`perdure.measure.guard`)."""

    reference: str
    model: str
    judged: bool
    rows: Annotated[int, Rule("a whole number of at least 1", lambda rows: rows >= 1)]
    passed_by_reference: Count
    fell: Count
    rose: Count
    p: float
    kl: float | None
    same_vocabulary: bool
    skills: dict[str, Skill]
    before: Form
    now: NotRequired[Form]
    is_finite: NotRequired[bool]
    kl_is_infinite: NotRequired[bool]
    weights_kept: NotRequired[bool]
    checks: NotRequired[Part]
    lm_eval: NotRequired[dict[str, LmEvalTask]]


class Verdict(TypedDict):
    """What a stage gained and lost (`perdure.measure.verdict`).

    The verdicts of the first releases have no `general`. `undone` is the stage whose arrival the
    stage took out; `task` and `learned` are those of that arrival. `alone` is the score on the
    task of the checkpoint that was merged, on its own.
    """

    task: str
    learned: Change | None
    old: dict[str, Change]
    lost: list[str]
    lost_before: list[str]
    together: NotRequired[Together]
    unmeasured: list[str]
    general: NotRequired[Unmeasured | Measured]
    suggestion: str | None
    undone: NotRequired[Count]
    alone: NotRequired[float]


def read_scores(file: Path) -> dict[str, Any]:
    """Return the scores in a file.

    Raises:
        PerdureError: they are not as a stage has them.
    """
    return _read(file, Scores)


def read_verdict(file: Path) -> dict[str, Any]:
    """Return the verdict in a file.

    Raises:
        PerdureError: it is not as a stage has it, or says that a task is lost that it has not.
    """
    verdict = {"general": {"unmeasured": "it was not asked for"}, **_read(file, Verdict)}
    for name in (*verdict["lost"], *verdict["lost_before"]):
        if name not in verdict["old"]:
            raise PerdureError(f"{file}: {name[:50]!r} is lost, but not in old; {_RESTORE}")
    return verdict


_RESTORE = "it is damaged, restore it from a copy"


def _read(file: Path, shape: Any) -> dict[str, Any]:
    try:
        value = read_json(file)
    except UnreadableError as error:
        raise PerdureError(f"{file}: not JSON ({error}); {_RESTORE}") from error
    try:
        check_shape(value, shape, str(file))
    except PerdureError as error:
        raise PerdureError(f"{error}; {_RESTORE}") from None
    return value
