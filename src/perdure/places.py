"""Suggestions for unknown keys of the settings: the section to which a key belongs.

Only other tools' names for the keys are listed here. The valid keys are read from the modules that
take them (`perdure.keys`), which import this module. They are therefore passed in from above:
`perdure` sets `every_key` when it is imported.
"""

import re
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from typing import NamedTuple

from perdure.errors import nearest


# Other tools' names for each key, without punctuation. If several keys have a name, the first one
# is the likeliest.
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
    "guard.rows": "guardrows guardfile",
    "guard.limit": "guardlimit guardsize",
    "gate.forgetting": "maxforgetting maxdrop",
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
    "guard.lm_eval.tasks": "task lmeval harness benchmarks",
    "guard.lm_eval.num_fewshot": "fewshot shots numshots nshot",
}


class Place(NamedTuple):
    """A valid key: its section ("" is the top), its name, and how it is written."""

    section: str
    name: str
    written: str


every_key: Callable[[], tuple[Place, ...]] = tuple  # until `perdure` sets `perdure.keys.every_key`


def where_it_goes(key: str, section: str = "", valid: Iterable[str] = ()) -> str:
    """Return the end of an error line about an unknown `key` of a section, such as `training`.

    Keys of other sections with the same name, or for which it is another tool's name, come first.
    Then come keys with a similar spelling, first those of the section itself.

    Args:
        key: the unknown key.
        section: the section in which it stands, "" for the top.
        valid: the keys of that section.
    """
    section, name = section.strip("."), key.rpartition(".")[2]
    section_keys = sorted(valid)
    elsewhere = [place for place in every_key() if place.section != section]
    squeezed = _squeezed(name)
    same_name = [
        place
        for place in elsewhere
        if place.name not in section_keys and _squeezed(place.name) == squeezed
    ]
    likeliest = list(ALIASES)
    by_alias = [
        place for place in every_key() if squeezed in ALIASES.get(place.written, "").split()
    ]
    by_alias.sort(key=lambda place: likeliest.index(place.written))
    in_section = [place for place in by_alias if place.section == section]
    if in_section:
        return f"did you mean {in_section[0].name!r}?"
    nearest_here, closeness = _closest(name, section_keys)
    if closeness >= 0.9:
        return f"did you mean {nearest_here!r}?"
    suggestions = list(dict.fromkeys(place.written for place in [*by_alias, *same_name]))
    # Prefer suggestions that are complete, without a NAME to fill in.
    suggestions = [written for written in suggestions if "NAME" not in written] or suggestions
    if suggestions:
        return f"write {' or '.join(suggestions[:3])}"
    nearest_elsewhere, similarity = _closest(name, [place.name for place in elsewhere])
    if similarity >= 0.8 and similarity > closeness:
        written = next(p.written for p in elsewhere if p.name == nearest_elsewhere)
        return f"did you mean {written}?"
    if closeness >= 0.6:
        return f"did you mean {nearest_here!r}?"
    return nearest(section if section not in _names_of_sections() else name, section_keys)


def _names_of_sections() -> set[str]:
    return {place.section for place in every_key()}


def _closest(word: str, names: list[str]) -> tuple[str, float]:
    """Return the name nearest to a word, and their similarity from 0 to 1."""
    scored = [(SequenceMatcher(None, word, name).ratio(), name) for name in names]
    closeness, name = max(scored, default=(0.0, ""))
    return name, closeness


def _squeezed(name: str) -> str:
    """Return a name in lower case and without punctuation: `learning-rate` as `learningrate`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
