"""What a line of the ledger is: the keys of each verb's line, and the types of their values.

A ledger may be damaged or a stranger's. What it says decides what is read, deleted, uploaded and
learned, so all of its lines are checked before any of them is used.
"""

from collections.abc import Sequence
from pathlib import Path
from re import fullmatch
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from perdure.config import Mode
from perdure.errors import PerdureError, nearest
from perdure.lineage.history import COMPACT, REPAIR
from perdure.lineage.names import REFUSED_STAGE, STAGE
from perdure.printable import printable
from perdure.shapes import Rule, check_shape


def _is_inside(name: str) -> bool:
    """Return whether a name is that of a file in or below a folder."""
    return "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


Count = Annotated[int, Rule("a whole number of at least 0", lambda number: number >= 0)]
Sha256 = Annotated[
    str, Rule("a SHA-256 in hex", lambda text: fullmatch(r"[0-9a-f]{64}", text) is not None)
]
Name = Annotated[
    str,
    Rule("a name without control characters", lambda name: printable(name, lines=False) == name),
]
FileName = Annotated[str, Rule("the name of a file in the stage's folder", _is_inside)]
Files = dict[FileName, Sha256]
StageFolder = Annotated[
    str, Rule("a stage's folder, stages/NNNN-NAME", lambda name: STAGE.fullmatch(name) is not None)
]
RefusedFolder = Annotated[
    str,
    Rule(
        "a stage's folder, refused/NNNN-NAME",
        lambda name: REFUSED_STAGE.fullmatch(name) is not None,
    ),
]
Keywords = dict[str, dict[str, Any] | None]  # a method's name, with the values of its keywords
Pair = Annotated[list[float], Rule("[cosine, against]", lambda values: len(values) == 2)]
Change = Annotated[list[Any], Rule("[old value, new value]", lambda values: len(values) == 2)]


class Pin(TypedDict):
    """The base: its name or folder, its commit on the hub, and the hashes of its files."""

    name: str
    files: Files
    revision: NotRequired[str | None]


class HeldOut(TypedDict):
    """The part of some rows that was held out of them, or that was left.

    With a limit, so many of the rows that were held out were drawn.
    """

    share: float
    seed: int
    part: Literal["train", "test"]
    limit: NotRequired[int]


class Drawn(TypedDict):
    """How rows were drawn (see `perdure.data.task.Split`)."""

    seed: int
    held_out: NotRequired[HeldOut]


class Limited(Drawn):
    """How many rows were drawn; None means all."""

    limit: int | None


class Templated(Limited):
    """Rows that may be made by templates (see `perdure.data.templates`)."""

    prompt: NotRequired[str]
    completion: NotRequired[str]
    labels: NotRequired[dict[str, str]]


class FileSource(Templated):
    """Rows of a file."""

    path: str


class HubSource(Templated):
    """Rows of a dataset on the hub."""

    hub: str
    split: str
    config: NotRequired[str | None]
    revision: NotRequired[str | None]


class GeneratedSource(Drawn):
    """Generated rows."""

    stream: Literal["generated"]
    task: str
    split: str
    limit: int


_From = TypedDict("_From", {"from": NotRequired[Literal["hub"]]})  # no name of a class's field


class BenchmarkSource(Limited, _From):
    """Rows of a benchmark."""

    benchmark: str
    split: str
    instruction: bool
    revision: NotRequired[str | None]


class Rows(TypedDict):
    """Rows of a task: their source, None if they were made in Python, number and hash."""

    source: FileSource | HubSource | GeneratedSource | BenchmarkSource | None
    rows: Count
    sha256: Sha256


class TaskLine(TypedDict):
    """A task that a stage learned."""

    id: Name
    name: Name
    metric: str
    options: list[str] | None
    train: Rows
    dev: NotRequired[Rows]
    test: NotRequired[Rows]
    chat: NotRequired[bool]
    system: NotRequired[bool]
    metric_source: NotRequired[str | None]
    training: NotRequired[dict[str, Any]]


class Line(TypedDict):
    """What every line has.

    `stage` is the newest stage after the line, `parent` the newest one before it, and `previous`
    the hash of the line before.
    """

    verb: str
    stage: Count
    parent: Count | None
    previous: str


class InitLine(Line):
    """The first line; the files are those of an adapter with which the lineage began.

    In lineages of the first releases, `settings` is a hash.
    """

    base: Pin
    settings: NotRequired[dict[str, Any] | Sha256]
    kind: NotRequired[Literal["adapter"]]
    folder: NotRequired[StageFolder]
    files: NotRequired[Files]


_With = TypedDict("_With", {"with": NotRequired[list[TaskLine]]})  # no name of a class's field


class LearnLine(Line, _With):
    """A stage that learned a task.

    `sampled` is the most test rows on which the old tasks were scored together, if they were not
    asked all of theirs. `processes` is the number that learned it together, if more than one did.
    `contains` has the folders of earlier stages whose adapters are the first ranks of its own.
    """

    kind: Literal["adapter", "weights"]
    folder: StageFolder
    files: Files
    mode: Mode
    method: str | Keywords | list[str | Keywords]
    task: TaskLine
    versions: dict[str, str]
    scores: NotRequired[dict[str, float | None]]
    sampled: NotRequired[Count]
    general: NotRequired[Rows]
    processes: NotRequired[Count]
    dropped: NotRequired[list[StageFolder]]
    contains: NotRequired[list[StageFolder]]


class AdoptLine(LearnLine):
    """A stage that is a checkpoint trained elsewhere, with the hashes of its files."""

    checkpoint: Files


class ArrivedLine(TypedDict):
    """A checkpoint that was merged: its weight, if it was given, and the norm of its change."""

    weight: float | None
    norm: float


class FolderPlace(TypedDict):
    """The folder of a checkpoint, relative to the lineage."""

    path: str


class HubPlace(TypedDict):
    """The name of a checkpoint on the hub."""

    hub: str


class InterferenceLine(TypedDict):
    """How an arrival's change stands to what was merged before it (`perdure.merging.observed`).

    `layers` has the cosine and the share of opposite signs of each layer, by its name.
    """

    cosine: float
    against: float
    layers: dict[Name, Pair]


class AlignedLine(TypedDict):
    """How the vocabulary of a checkpoint was aligned with that of the base.

    `shared` is the number of tokens that are in both, `unchanged` that of those which the
    checkpoint lacks, `own` that of those which the base lacks, and `sha256` the hash of the rows.
    """

    shared: Count
    unchanged: Count
    own: Count
    sha256: Sha256


class TrialLine(TypedDict):
    """A weight of an arrival that was tried, with the old tasks' scores and the gate's reasons."""

    weight: float
    scores: dict[str, float | None]
    reasons: list[str]


class MergeLine(AdoptLine):
    """A stage into which a checkpoint was merged.

    `history` has all checkpoints in the state of the rule, the new one last, `discarded` the share
    of a merged adapter that its rank cuts off, and `after` the treatments with their keywords.
    `statistics` is the hash of what was measured of the checkpoint, if the rule needs it, and
    `vocabulary` how its tokens were aligned, if they were not those of the base. If the
    rule learns weights, `rows` is the hash of the rows, `coefficients` has the weights of all
    checkpoints in the model, of which the base has the rest to 1, and `searches` the steps that led
    to the weights. `place` is where the checkpoint was, and `rounding` the norm of what was rounded
    off the sums in the state. `search` has the weights that were to be tried, and `trials` those
    that were, the last of which is the weight. A line with `undone` takes the arrival of that stage
    out of the state, and has that arrival's checkpoint. `alone` is the score of the checkpoint on
    its own on the task's test rows, if its lineage has it, and `labels` the sum of the weights for
    each label of an encoder's head.
    """

    rule: Keywords
    after: NotRequired[list[dict[str, dict[str, Any]]]]
    statistics: NotRequired[str]
    vocabulary: NotRequired[AlignedLine]
    rows: NotRequired[str]
    coefficients: NotRequired[list[float]]
    searches: NotRequired[list[list[dict[str, float]]]]
    weight: float | None
    history: list[ArrivedLine]
    discarded: NotRequired[float]
    place: NotRequired[FolderPlace | HubPlace]
    search: NotRequired[list[float]]
    trials: NotRequired[list[TrialLine]]
    rounding: NotRequired[float]
    interference: NotRequired[InterferenceLine]
    alone: NotRequired[float]
    labels: NotRequired[dict[str, float]]
    undone: NotRequired[Count]


class RefusedLine(Line):
    """A stage that the gate refused; the newest stage stays the newest.

    Of an arrival it has the weight, and what a search has tried.
    """

    folder: RefusedFolder
    files: Files
    mode: Mode
    method: str | Keywords | list[str | Keywords]
    task: TaskLine
    scores: dict[str, float | None]
    sampled: NotRequired[Count]
    reasons: list[str]
    key: str
    undone: NotRequired[Count]
    weight: NotRequired[float | None]
    trials: NotRequired[list[TrialLine]]


class RevertLine(Line):
    """An earlier stage is the newest again."""


class RebaseLine(Line):
    """The base has moved."""

    base: Pin


class SetLine(Line):
    """The settings have changed."""

    changed: dict[str, Change]
    settings: dict[str, Any]


class CompactLine(Line):
    """Weights that can be learned again were deleted."""

    dropped: list[StageFolder]
    bytes: Count


class RepairLine(Line):
    """Weights that were deleted were learned again."""

    restored: list[StageFolder]


LINES: dict[str, Any] = {
    "init": InitLine,
    "learn": LearnLine,
    "adopt": AdoptLine,
    "merge": MergeLine,
    "refused": RefusedLine,
    "revert": RevertLine,
    "rebase": RebaseLine,
    "set": SetLine,
    COMPACT: CompactLine,
    REPAIR: RepairLine,
}
MAKES_A_STAGE = ("learn", "adopt", "merge")
NAMES_FOLDERS = ("dropped", "restored", "contains")  # the keys with folders of earlier stages
HOW = "Perdure did not write this line, do not use the lineage"


def check_ledger(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Check the lines of the ledger `path`.

    Each has the keys of its verb with values of the right types. The first makes stage 0, a new
    stage has a higher number than its parent and leaves no number out, and all other stages that a
    line names are in lines before it. So the parents of each stage lead to stage 0. The folders
    that a line drops, restores or contains are those of stages in lines before it.

    Raises:
        PerdureError: one has not; the error line has its number and the key.
    """
    newest = -1
    folders: set[str] = set()  # of the stages in the lines before
    for number, entry in enumerate(entries, start=1):
        where = f"{path}, line {number}"
        verb = entry.get("verb")
        if not isinstance(verb, str) or verb not in LINES:
            hint = nearest(verb[:50] if isinstance(verb, str) else "", LINES)
            raise PerdureError(f"{where}: verb {str(verb)[:50]!r} is unknown; {hint}; {HOW}")
        try:
            check_shape(entry, LINES[verb], where, closed=True)
        except PerdureError as error:
            raise PerdureError(f"{error}; {HOW}") from None
        problem = _stage_problem(entry, newest) or _folder_problem(entry, folders)
        if problem:
            raise PerdureError(f"{where}: {problem}; {HOW}")
        newest = max(newest, entry["stage"])
        if "folder" in entry:
            folders.add(entry["folder"])


def _stage_problem(entry: dict[str, Any], newest: int) -> str | None:
    """Return what is wrong with the stages that a line names, None if nothing is.

    Args:
        entry: the line.
        newest: the highest number of a stage in the lines before it, -1 for the first line.
    """
    verb, stage, parent = entry["verb"], entry["stage"], entry["parent"]
    if newest < 0 or verb == "init":
        is_first = newest < 0 and verb == "init" and stage == 0 and parent is None
        return None if is_first else "only the first line makes stage 0, which has no parent"
    if parent is None or parent > newest:
        return f"parent {parent} is not a stage of a line before it"
    if verb in MAKES_A_STAGE:
        if not parent < stage <= newest + 1:
            return f"stage {stage} must be above its parent {parent} and at most {newest + 1}"
        if not entry["folder"].startswith(f"stages/{stage:04d}-"):
            return f"folder {entry['folder']!r} is not that of stage {stage}"
        if "undone" in entry and not 0 < entry["undone"] <= newest:
            return f"undone {entry['undone']} is not a stage of a line before it"
    elif stage > newest:
        return f"stage {stage} is not a stage of a line before it"
    return None


def _folder_problem(entry: dict[str, Any], folders: set[str]) -> str | None:
    """Return which folder a line names that is not the folder of a line before it, None if none."""
    named = [folder for key in NAMES_FOLDERS for folder in entry.get(key, ())]
    unknown = next((folder for folder in named if folder not in folders), None)
    return None if unknown is None else f"{unknown!r} is not the folder of a stage before it"
