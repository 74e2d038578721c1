"""LoRA adapters that are folded into the adapter of a lineage."""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from perdure.disk import fresh_folder
from perdure.errors import PerdureError
from perdure.lineage.files import dump
from perdure.lineage.lineage import Lineage
from perdure.merging.adapter import PREFIX
from perdure.merging.factors import (
    DOWNS,
    UPS,
    Factors,
    added,
    balanced,
    check_only_factors,
    compressed,
    distance,
    facts_of,
    module_of,
    norms_and_cosines,
    read_sum,
    scaled,
    sums,
    tensors_of,
)
from perdure.merging.layers import Layers
from perdure.merging.model import Checkpoint, open_checkpoint
from perdure.merging.observed import interference
from perdure.merging.rule import Arrived, Place, Rule
from perdure.merging.treatment import Treatment
from perdure.models.base import Base
from perdure.models.checkpoints import adapter_tensors, check_base_of
from perdure.models.classifier import Classifier
from perdure.models.layout import ADAPTER_SETTINGS, ADAPTER_WEIGHTS, MERGE_STATE
from perdure.models.stage_files import check_width, plain
from perdure.say import Say
from perdure.verbs.advance import AdoptedWeights
from perdure.verbs.merged_so_far import SoFar, first_weight, history_of, ratio_of


LEAST_CUT = 1e-6  # the least share that is cut off and told


def check_adapter(
    lineage: Lineage, arrival: Checkpoint, rule: Rule, after: tuple[Treatment, ...]
) -> None:
    """Check that a checkpoint can be merged into a lineage with an adapter.

    Raises:
        PerdureError: it cannot; the line says what can be.
    """
    path, kind = lineage.path, (lineage.config.adapter or {}).get("peft_type", "LORA")
    if str(kind).upper() != "LORA":
        raise PerdureError(f"{path}: its stages have {kind} adapters, and only LoRA can be merged")
    if arrival.adapter is None:
        raise PerdureError(
            f"{arrival.name}: is a whole model, but the stages of {path} have LoRA adapters; merge "
            "it in a lineage with `adapter: null`, or into a new model with --into"
        )
    if not rule.linear:
        raise PerdureError(
            f"{rule.name}: does more than to add task vectors, so that its result is no LoRA "
            f"adapter, and the stages of {path} are; use average, task_arithmetic or ema, or merge "
            "into a new model with --into"
        )
    treatment = next((one.name for one in after if not one.scales), None)
    if treatment is not None:
        raise PerdureError(
            f"{treatment}: its result is no LoRA adapter, and the stages of {path} are; merge into "
            "a new model with --into"
        )
    check_only_factors(arrival.part, arrival.name)
    check_base_of(arrival.folder, lineage.pin, str(path))


def check_modules(lineage: Lineage, arrival: Checkpoint, base: Base) -> None:
    """Check that the lineage's adapter has the modules of a checkpoint, and only factors.

    Raises:
        PerdureError: it has not.
    """
    path, present = lineage.path, adapter_tensors(base)
    if isinstance(base.model, Classifier):
        check_width(arrival.name, arrival.folder, base.model.weight.shape[1])
    ours: Any = base.peft.peft_config["default"]
    if ours.rank_pattern or ours.alpha_pattern:
        raise PerdureError(
            f"{path}: its adapter has ranks or alphas of its own for some modules (rank_pattern, "
            "alpha_pattern), and a merged one has the same for all; merge into a new model with "
            "--into"
        )
    other = next((name for name in present if not name.endswith((*DOWNS, *UPS))), None)
    if other is not None:
        raise PerdureError(
            f"{path}: its adapter has {other} beside factors of LoRA; merge into a new model with "
            "--into"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in present.items()}
    modules = {module_of(name) for name in present}
    for name, module in arrival.part.modules.items():
        if name not in modules:
            raise PerdureError(
                f"{arrival.name}: changes {name}, which the adapter of {path} has not; train it "
                "with the lineage's target_modules, or merge into a new model with --into"
            )
        down, up = (arrival.part.stored[part].shape for part in (module.down, module.up))
        ends = [name for name in present if module_of(name) == module.name]
        wanted = {end.endswith(DOWNS): shapes[end] for end in ends}
        if (up[0], down[1]) != (wanted[False][0], wanted[True][1]):
            raise PerdureError(
                f"{arrival.name}: is of another shape: {name} is {up[0]} x {down[1]}, and "
                f"{wanted[False][0]} x {wanted[True][1]} in {path}"
            )


def merged_adapters(
    rule: Rule,
    arrival: Checkpoint,
    after: tuple[Treatment, ...],
    so_far: SoFar,
    base: Base,
    rank: int | None,
    work: Path,
    say: Say,
) -> AdoptedWeights:
    """Fold a LoRA adapter into the lineage's, and keep the sum in all of its rank as the state."""
    checkpoints = [arrival]
    if so_far.first is not None:
        first = open_checkpoint(str(so_far.first), first_weight(rule))
        check_only_factors(first.part, first.name)
        checkpoints.insert(0, first)
    adapters = [checkpoint.part for checkpoint in checkpoints]
    with ExitStack() as stack:
        for checkpoint in checkpoints:
            stack.enter_context(checkpoint.open())
        norms, _ = norms_and_cosines(adapters)
        new = [Arrived(c.weight, norm) for c, norm in zip(checkpoints, norms, strict=True)]
        history = [*so_far.history, *new]
        coefficients = rule.coefficients(history)
        total = sums(adapters, coefficients[len(so_far.history) :])
        before = sums(adapters[:-1], [1.0] * len(adapters[:-1]))
        change = sums(adapters[-1:], [1.0])
    if so_far.state is not None:
        before = read_sum(so_far.state, ratio=1.0)
        ratio = ratio_of(rule.coefficients(so_far.history), coefficients)
        for name, factors in read_sum(so_far.state, ratio).items():
            total[name] = added(total.get(name), factors, arrival.name)
    weights = adapter_of_sum(total, history, rule, base, rank, work, say, after=after)
    if not before:
        return weights
    measured = interference(facts_of(before, change))
    return replace(weights, line={**weights.line, "interference": measured})


def adapter_of_sum(
    total: Mapping[str, Factors],
    history: Sequence[Arrived],
    rule: Rule,
    base: Base,
    rank: int | None,
    work: Path,
    say: Say,
    after: tuple[Treatment, ...] = (),
) -> AdoptedWeights:
    """Write a sum of adapters as an adapter of the lineage's form, and as the rule's state.

    Args:
        total: the sum, by module.
        history: the arrivals that are in it.
        rule: the rule.
        base: the model with an adapter of the lineage's form.
        rank: the rank; None is that of the lineage.
        work: a folder for the files.
        say: called with a note if the rank cuts something off.
        after: the treatments of the adapter, which the state does not have.
    """
    ours: Any = base.peft.peft_config["default"]
    present = adapter_tensors(base)
    cap = rank or ours.r
    scaling = ours.lora_alpha / (math.sqrt(ours.r) if ours.use_rslora else ours.r)
    dtype = next(iter(present.values())).dtype
    treated = scaled(total, after, _layers(base, after))
    merged = compressed(treated, cap, dtype, scaling=scaling, fill=present)
    if merged.discarded > LEAST_CUT:
        say(
            f"note: at rank {cap}, {merged.discarded:.2%} of the sum of squares of the merged "
            f"change is cut off, in one module {merged.worst:.2%}; the state of the stage keeps "
            "it, and --rank allows more"
        )
    folder = work / "merging"
    fresh_folder(folder)
    save_file(merged.tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    alpha = scaling * (math.sqrt(cap) if ours.use_rslora else cap)
    settings = {**plain(ours.to_dict()), "r": cap, "lora_alpha": _whole(alpha)}
    (folder / ADAPTER_SETTINGS).write_text(dump(settings), encoding="utf-8")
    line = {"history": history_of(history), "discarded": merged.discarded}
    if not history:
        return AdoptedWeights(folder, line=line)
    state = {name: balanced(factors)[0] for name, factors in total.items()}
    save_file(tensors_of(state, rule.dtype), folder / MERGE_STATE, metadata={"format": "pt"})
    if rule.can_undo:
        line["rounding"] = distance(total, read_sum(folder / MERGE_STATE, ratio=1.0))
    return AdoptedWeights(folder, line=line, state=folder / MERGE_STATE)


def _layers(base: Base, after: tuple[Treatment, ...]) -> Layers:
    """Return the numbered layers of a lineage's base.

    Raises:
        PerdureError: a treatment needs them, and there are none.
    """
    names = [name.removeprefix(PREFIX) for name, _ in base.peft.named_parameters()]
    layers = Layers(names)
    places = [Place(name, (), "matrix", layers.depth(name)) for name in names]
    for treatment in after:
        treatment.check(places)
    return layers


def _whole(number: float) -> int | float:
    return int(number) if number == int(number) else number
