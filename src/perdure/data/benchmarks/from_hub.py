"""Reading a benchmark task from the hub, in the sizes of the published form.

Long Sequence: train has 1,000 rows of the dataset's train split and dev has 500 others of it. Test
has at most 500 rows of each class of the dataset's test split, or of its validation split if the
test labels are not published. All rows of cb and copa are needed for train, so they have no dev.

SuperNI: a tenth of a task's rows, at most 100, are test, and as many are dev. At most 1,000 of the
others are train.

The draws do not depend on a run's seed, and train, dev and test never share a row.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from perdure.data.benchmarks import superni
from perdure.data.benchmarks.recipes import RECIPES, Recipe
from perdure.data.hub import HUB, address, describe, label_names, load
from perdure.data.rows import Row
from perdure.data.templates import check_columns, make_templates
from perdure.errors import PerdureError


if TYPE_CHECKING:
    from datasets import Dataset

TRAIN, DEV, OF_A_CLASS = 1000, 500, 500
SUPERNI_TEST = 100


def hub_rows(task: str, split: str, revision: str | None) -> tuple[list[Row], str | None]:
    """Read the rows of a split, and the hash of the commit that they come from.

    The list of rows is empty if the task does not have the split.

    Raises:
        PerdureError: the dataset cannot be loaded, or differs from what the recipe expects.
    """
    if task in superni.TASKS:
        return _superni(task, split, revision)
    return _long_sequence(task, split, revision)


def _long_sequence(task: str, split: str, revision: str | None) -> tuple[list[Row], str | None]:
    recipe = RECIPES[task]
    place = address(HUB + recipe.test, split)
    source = place["split"] if split == "test" else "train"
    dataset, revision = load(place["hub"], place["config"], source, revision)
    where = describe(place["hub"], place["config"], source)
    check_columns([recipe.label], dataset.column_names, where)
    answers = _answers(dataset, recipe, where)
    completion = f"{{{recipe.label}}}"
    settings = {"prompt": recipe.prompt(), "completion": completion, "labels": answers}
    templates = make_templates(settings, where)
    assert templates is not None
    check_columns(templates.columns(), dataset.column_names, where)
    values: list[Any] = dataset[recipe.label][:]
    labelled = [i for i, value in enumerate(values) if value in answers]
    order = random.Random(f"perdure {task} {source}").sample(labelled, len(labelled))
    if split == "test":
        chosen = _of_each_class(order, values)
    else:
        chosen = order[:TRAIN] if split == "train" else order[TRAIN : TRAIN + DEV]
    drawn = dataset.select_columns(templates.columns()).select(chosen)
    rows = [
        templates.row(raw, f"{where}, row {i + 1}") for i, raw in zip(chosen, drawn, strict=True)
    ]
    return rows, revision


def _answers(dataset: "Dataset", recipe: Recipe, where: str) -> dict[Any, str]:
    """Return the answer for each value of the label column, matched by label name if there are."""
    names = label_names(dataset).get(recipe.label)
    if names is None:  # plain integers, as the recipe numbers them, or from 0 in its order
        numbered = all(isinstance(label, int) for label in recipe.answers)
        return dict(recipe.answers if numbered else enumerate(recipe.answers.values()))
    if set(names) != set(recipe.answers):
        raise PerdureError(
            f"{where}: its labels are {', '.join(names)}, not {', '.join(map(str, recipe.answers))}"
            " as this version of Perdure expects"
        )
    return {i: recipe.answers[name] for i, name in enumerate(names)}


def _of_each_class(order: Sequence[int], values: Sequence[Any]) -> list[int]:
    chosen, seen = [], Counter()
    for i in order:
        seen[values[i]] += 1
        if seen[values[i]] <= OF_A_CLASS:
            chosen.append(i)
    return chosen


def _superni(task: str, split: str, revision: str | None) -> tuple[list[Row], str | None]:
    read = _apart if task in superni.APART else _together
    texts, revision, where = read(task, revision)
    targets: dict[tuple[str, str], list[str]] = {}  # the dataset repeats an input for each answer
    for definition, text, target in texts:
        if target.strip():
            targets.setdefault((definition, text), []).append(target)
    if not targets:
        raise PerdureError(f"{where}: no row is of {task}")
    first: dict[str, Row] = {}
    for (definition, text), answers in targets.items():
        row = superni.row(task, definition, text, answers, references=split != "train")
        first.setdefault(row["prompt"], row)
    rows = random.Random(f"perdure {task}").sample(list(first.values()), len(first))
    held = min(SUPERNI_TEST, math.ceil(len(rows) / 10))
    parts = {"test": (0, held), "dev": (held, 2 * held), "train": (2 * held, 2 * held + TRAIN)}
    start, stop = parts[split]
    return rows[start:stop], revision


Texts = list[tuple[str, str, str]]  # definition, input, answer


def _together(task: str, revision: str | None) -> tuple[Texts, str | None, str]:
    """Read a task from the dataset that has many tasks, each in its own file."""
    name = superni.NAMES[task]
    dataset, revision = load(superni.HUB, None, "train", revision, f"train/{name}_train.jsonl")
    where = describe(superni.HUB, None, "train")
    columns = ["task_name", "definition", "inputs", "targets"]
    check_columns(columns, dataset.column_names, where)
    rows: Any = dataset.select_columns(columns)
    texts = [(r["definition"], r["inputs"], r["targets"]) for r in rows if r["task_name"] == name]
    return texts, revision, where


def _apart(task: str, revision: str | None) -> tuple[Texts, str | None, str]:
    """Read a task that has a dataset of its own."""
    place = f"{superni.OWNER}/{superni.APART[task]}"
    dataset, revision = load(place, None, "train", revision)
    where = describe(place, None, "train")
    check_columns(["input", "output"], dataset.column_names, where)
    rows: Any = dataset.select_columns(["input", "output"])
    texts = [(*superni.unpacked(r["input"]), output) for r in rows for output in r["output"]]
    return texts, revision, where
