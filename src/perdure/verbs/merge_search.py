"""`merge --search` looks for the largest weight of an arrival that stays within the gate."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from perdure.config import Gate
from perdure.data.task import Split, Task
from perdure.disk import fresh_folder
from perdure.errors import PerdureError, RefusedError
from perdure.lineage.files import dump, write_text
from perdure.lineage.lineage import Lineage
from perdure.lineage.sources import reopen, reopen_rows
from perdure.lineage.work import remove_work
from perdure.measure.gate import beyond
from perdure.measure.predictions import Predictions
from perdure.measure.verdict import compare, plain
from perdure.merging.model import Checkpoint
from perdure.merging.rule import Rule
from perdure.models.base import Base
from perdure.models.checkpoints import load_checkpoint
from perdure.prepare import Plan
from perdure.say import Say, silent
from perdure.train.stage import score
from perdure.verbs.advance import AdoptedWeights, beginning_of
from perdure.verbs.general import measure_general


SHARES = (
    1.0,
    0.5,
    0.25,
    0.125,
)  # of the weight that was given, in the order in which they are tried
TRIALS = "trials.json"  # the trials of a search that is not finished


@dataclass(frozen=True)
class Search:
    """The weights of an arrival that are tried.

    Args:
        lineage: the lineage, which the caller has locked.
        plan: the checked plan of its settings.
        weights: the weights, the largest first.
        merged: returns the merged weights for a weight, given the model with the weights of the
            stage before, a folder, and what is called with each note.
        data: the folder with the benchmarks' rows.
        say: called with a line for each trial, and each warning.
    """

    lineage: Lineage
    plan: Plan
    weights: Sequence[float]
    merged: Callable[[float, Base, Path, Say], AdoptedWeights]
    data: str | Path | None
    say: Say

    def run(self, base: Base, work: Path) -> AdoptedWeights:
        """Try the weights until one stays within the gate, and return what is merged with it.

        Trials of a process that was stopped are not repeated.

        Args:
            base: the model with the weights of the stage before.
            work: the folder of the unfinished stage.

        Raises:
            RefusedError: none does.
        """
        if line := self._beyond_already():
            self.say(f"warning: {line}")
        file = work / TRIALS
        trials = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        tasks = self._tasks() if self.lineage.config.gate.forgetting is not None else {}
        before: dict[str, Predictions] | None = None
        for number, weight in enumerate(self.weights):
            if number >= len(trials):
                before = self._answers(base, tasks) if before is None else before
                trials.append(self._trial(weight, base, tasks, before, work))
                write_text(file, dump(trials))
                base = self._restored()
            reasons = trials[number]["reasons"]
            self.say(f"search: weight {weight:g}: {'; '.join(reasons) or 'within the gate'}")
            if not reasons:
                made = self.merged(weight, base, work, self.say)
                line = {**made.line, "weight": weight, "trials": trials[: number + 1]}
                return replace(made, line=line, base=base)
        remove_work(self.lineage.path, self.lineage.ledger[0])
        tried = ", ".join(f"{weight:g}" for weight in self.weights)
        raise RefusedError(
            f"{self.lineage.path}: with no weight of {tried} the stage stays within the gate; at "
            f"{self.weights[-1]:g}: {'; '.join(trials[-1]['reasons'])}; nothing was changed"
        )

    def _beyond_already(self) -> str | None:
        """Return a line if the newest stage itself is beyond a limit for general ability."""
        lineage = self.lineage
        judged = lineage.verdict(lineage.stages[-1]) if lineage.stages else None
        if judged is None or "general" not in judged:
            return None
        reasons = beyond(lineage.config.gate, {"old": {}, "general": judged["general"]})
        if not reasons:
            return None
        return (
            f"stage {lineage.head} itself is beyond the gate ({'; '.join(reasons)}), so that less "
            f"of the checkpoint may not be enough; `perdure set {lineage.path} gate.KEY=VALUE` "
            "changes the gate"
        )

    def _tasks(self) -> dict[str, Task]:
        """Return the old tasks by id, with the rows on which they are scored as their test rows.

        These are dev rows, or else test rows. The choice of a weight on test rows makes their
        scores too good, so a warning says so.
        """
        tasks, without = {}, []
        for entry in self.lineage.standing:
            described = entry["task"]
            dev = reopen_rows(self.lineage, described, self.data, self.say, split="dev")
            if dev is not None:
                options = tuple(described["options"]) if described["options"] else None
                metric = described["metric"]
                task = Task(described["name"], Split(()), test=dev, metric=metric, options=options)
                tasks[described["id"]] = task
                continue
            task = reopen(self.lineage, described, self.data, self.say)
            if task is not None and task.test is not None:
                tasks[described["id"]] = task
                without.append(described["id"])
        if without:
            self.say(
                f"warning: {', '.join(without)}: without dev rows, so the weight is chosen on the "
                "test rows, whose scores at this stage are too good then"
            )
        return tasks

    def _answers(self, base: Base, tasks: Mapping[str, Task]) -> dict[str, Predictions]:
        """Return the model's answers to the old tasks."""
        config = self.lineage.config
        return {name: score(base, task, config)[1] for name, task in tasks.items()}

    def _trial(
        self,
        weight: float,
        base: Base,
        tasks: Mapping[str, Task],
        before: Mapping[str, Predictions],
        work: Path,
    ) -> dict[str, Any]:
        """Merge with a weight and score the result.

        Returns:
            The `weight`, the `scores` of the old tasks, and the `reasons` why the gate would refuse
            it.
        """
        lineage, folder = self.lineage, work / "trial"
        made = self.merged(weight, base, work, silent)
        load_checkpoint(base, made.folder, lineage.config.adapter)
        after = self._answers(base, tasks)
        changes = {name: compare(before[name], after[name]) for name in after}
        judged = {
            "old": {name: plain(change) for name, change in changes.items() if change},
            "general": self._general(base, folder),
        }
        return {
            "weight": weight,
            "scores": {name: change["after"] for name, change in judged["old"].items()},
            "reasons": beyond(lineage.config.gate, judged),
        }

    def _general(self, base: Base, folder: Path) -> dict[str, Any]:
        """Measure general ability, if the gate has a limit for it."""
        lineage, gate = self.lineage, self.lineage.config.gate
        if gate.general is None and gate.kl is None:
            return {"unmeasured": "the gate has no limit for it"}
        fresh_folder(folder)
        return measure_general(
            lineage,
            base,
            methods=(),
            beginning=beginning_of(lineage, base, self.plan.info),
            counts={},
            number=lineage.next_stage,
            built=folder,
            tasks=self.plan.lm_eval,
        )

    def _restored(self) -> Base:
        """Return the model with the weights of the stage before."""
        stages = self.lineage.stages
        return self.plan.loader.at(self.lineage, stages[-1] if stages else None)


def weights_to_try(rule: Rule, arrival: Checkpoint, gate: Gate, path: Path) -> list[float]:
    """Return the weights that a search tries, the largest first.

    Raises:
        PerdureError: the rule has no weights, it is not known where to begin, or nothing could be
            refused.
    """
    if not rule.weighted:
        raise PerdureError(f"{rule.name}: takes no weights, so there is none to search for")
    if arrival.weight is None and rule.learns:
        raise PerdureError(
            f"{rule.name}: learns the weight of an arrival on --rows; leave out --search, or give "
            "the weight with which it begins, such as --weight 0.5"
        )
    if arrival.weight is None and rule.order_matters:
        raise PerdureError(
            f"{rule.name}: the weight of an arrival that has none depends on the others; give the "
            "one with which the search begins, such as --weight 0.5"
        )
    if arrival.weight == 0:
        raise PerdureError("weight: is 0, and a search only makes it smaller; give another one")
    if gate == Gate():
        raise PerdureError(
            f"{path}: has no gate, so every weight stays within it; set a limit first, such as "
            f"`perdure set {path} gate.forgetting=0.05`"
        )
    return [share * (1.0 if arrival.weight is None else arrival.weight) for share in SHARES]
