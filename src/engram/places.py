"""Where a key of the settings belongs: said of a key that stands in a place that has none like it.

Nothing is listed twice: the places are read off `Config`, `TrainingArguments`, PEFT's and
bitsandbytes' settings and the methods' keywords. Only what other tools call these keys is a list.
All of it is imported here and not before, because a key without fault needs none of it.
"""

import dataclasses
import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from functools import cache
from typing import Any, NamedTuple

from engram.errors import nearest


# What other tools call a key, without its punctuation; the first place is the likeliest.
ALIASES = {
    "training.learning_rate": "lr rate learningrate",
    "training.num_train_epochs": "epoch epochs numepochs nepochs trainepochs maxepochs",
    "training.per_device_train_batch_size": "batch batchsize trainbatchsize microbatchsize bs",
    "training.gradient_accumulation_steps": "accumulation accumulationsteps gradaccum"
    " gradaccumsteps gradaccumulation gradientaccumulation",
    "training.max_steps": "steps numsteps trainsteps numtrainsteps maxtrainsteps",
    "training.lr_scheduler_type": "scheduler lrscheduler schedule lrschedule schedulertype",
    "training.warmup_steps": "warmup warmupratio numwarmupsteps",
    "training.optim": "optimizer optimiser",
    "training.weight_decay": "wd decay",
    "training.max_grad_norm": "clip gradclip gradientclipping maxnorm clipnorm clipgradnorm",
    "training.report_to": "tracker trackers wandb tensorboard logger",
    "adapter.r": "lorar rank lorarank adapterr",
    "adapter.lora_alpha": "alpha",
    "adapter.lora_dropout": "dropout",
    "adapter.target_modules": "loratargetmodules loratarget targets targetmodule",
    "adapter.peft_type": "peft pefttype adaptertype",
    "quantization.load_in_4bit": "4bit in4bit load4bit qlora bits",
    "quantization.load_in_8bit": "8bit in8bit load8bit",
    "memory.ratio": "memoryratio replayratio buffer buffersize memorysize",
    "scoring.batch_size": "batch batchsize evalbatchsize perdeviceevalbatchsize",
    "scoring.mode": "scoringmode evalmode",
    "general.file": "generalfile generaldata",
    "base": "model modelname modelnameorpath basemodel pretrainedmodel modelid checkpoint",
    "tasks": "task dataset datasets stream streams order trainfile datafile",
    "method": "methods algorithm strategy",
    "max_length": "maxseqlength maxseqlen modelmaxlength cutofflen contextlength maxlen",
    "max_completion_length": "maxnewtokens maxtargetlength maxtokens completionlength",
    "checkpoint_every": "savesteps checkpointsteps saveevery",
    "seed": "randomseed rngseed",
    "threads": "numthreads nthreads",
    "lineage": "output outputdir outdir folder savedir",
    "data": "datadir datafolder datapath",
}


class Place(NamedTuple):
    """A valid key: the section it stands in ("" is the top), its name, and how to write it."""

    section: str
    name: str
    written: str


def where_it_goes(key: str, section: str = "", valid: Iterable[str] = ()) -> str:
    """The end of an error line about an unknown `key` of a section, such as `training`.

    First the keys of other sections that have just this name, or that other tools call so; then the
    nearest by spelling, of which those of this section (`valid` are its keys) come first.
    """
    section, name = section.strip("."), key.rpartition(".")[2]
    own = sorted(valid)
    beyond = [place for place in places() if place.section != section]
    squeezed = _squeezed(name)
    same = [
        place for place in beyond if place.name not in own and _squeezed(place.name) == squeezed
    ]
    likeliest = list(ALIASES)
    called = [p for p in places() if squeezed in ALIASES.get(p.written, "").split()]
    called.sort(key=lambda place: likeliest.index(place.written))
    here = [place for place in called if place.section == section]
    if here:
        return f"did you mean {here[0].name!r}?"
    nearest_here, closeness = _closest(name, own)
    if closeness >= 0.9:
        return f"did you mean {nearest_here!r}?"
    found = list(dict.fromkeys(place.written for place in [*called, *same]))
    if found := [written for written in found if "NAME" not in written] or found:
        return f"write {' or '.join(found[:3])}"
    nearest_beyond, far = _closest(name, [place.name for place in beyond])
    if far >= 0.8 and far > closeness:
        return f"did you mean {next(p.written for p in beyond if p.name == nearest_beyond)}?"
    if closeness >= 0.6:
        return f"did you mean {nearest_here!r}?"
    return nearest(section if section not in _names_of_sections() else name, own)


def _names_of_sections() -> set[str]:
    return {place.section for place in places()}


def _closest(word: str, names: list[str]) -> tuple[str, float]:
    """The name nearest to a word, and how near it is from 0 to 1."""
    scored = [(SequenceMatcher(None, word, name).ratio(), name) for name in names]
    closeness, name = max(scored, default=(0.0, ""))
    return name, closeness


def _squeezed(name: str) -> str:
    """`learningRate`, `learning-rate` and `learning_rate` are one name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def places() -> tuple[Place, ...]:
    """Every key that the settings can have."""
    return (
        *_sections(),
        *_training(),
        *_adapter(),
        *_quantization(),
        *_methods(),
        *_tasks(),
        *_compare(),
    )


def _sections() -> list[Place]:
    from engram.config import Config

    found = []
    for key in dataclasses.fields(Config):
        found.append(Place("", key.name, key.name))
        kind: Any = key.type
        for inner in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
            found.append(Place(key.name, inner.name, f"{key.name}.{inner.name}"))
    return found


def _training() -> list[Place]:
    from engram.train.arguments import settable

    return [Place("training", name, f"training.{name}") for name in settable()]


def _adapter() -> list[Place]:
    from peft import LoraConfig, PeftConfig

    made_by_peft = {field.name for field in dataclasses.fields(PeftConfig)} - {"peft_type"}
    names = [f.name for f in dataclasses.fields(LoraConfig) if f.name not in made_by_peft]
    return [Place("adapter", name, f"adapter.{name}") for name in names]


def _quantization() -> list[Place]:
    from engram.models.base import quantization_keys

    return [Place("quantization", name, f"quantization.{name}") for name in quantization_keys()]


def _methods() -> list[Place]:
    from engram.methods import keywords, names

    with_it: dict[str, list[str]] = {}
    for method in names():
        for keyword in keywords(method):
            with_it.setdefault(keyword, []).append(method)
    found = [Place("method", method, f"method: {method}") for method in names()]
    for keyword, methods in with_it.items():
        one = methods[0] if len(methods) == 1 else "NAME"
        which = "" if len(methods) == 1 else f" for {', '.join(methods)}"
        written = f"method: {{{one}: {{{keyword}: ...}}}}{which}"
        found += [Place(f"method.{method}", keyword, written) for method in methods]
    return found


def _tasks() -> list[Place]:
    from engram.data.stream import KEYS

    return [Place("tasks", name, f"tasks: [{{{name}: ...}}]") for name in KEYS]


def _compare() -> list[Place]:
    from engram.comparison.grid import OWN

    return [Place("compare", name, f"{name} in the YAML of `engram compare`") for name in OWN]
