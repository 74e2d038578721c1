"""The files of a merged model beside its weights: what the base has, and a card."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from perdure.merging.model import Checkpoint, Model
from perdure.merging.rule import Rule
from perdure.merging.treatment import Treatment
from perdure.models.layout import ADAPTER_SETTINGS, CARD, HEAD_WEIGHTS
from perdure.parsing import read_json
from perdure.printable import printable


# The files of a base that belong to a model: config, tokenizer and chat template.
BESIDE = (".json", ".txt", ".model", ".jinja")
# Those that decide how a model is asked, which another checkpoint's may replace.
ASKED = (
    *("config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"),
    *("tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt"),
)
NOT_COPIED = ("model.safetensors.index.json", ADAPTER_SETTINGS)


def copy_beside(
    base: Model, folder: Path, dtype: torch.dtype | None, speaks: Checkpoint | None = None
) -> None:
    """Copy the base's config, tokenizer and chat template into the folder of a merged model.

    Args:
        base: the base.
        folder: the folder.
        dtype: the data type of the merged weights, None for that of the base's.
        speaks: a checkpoint whose files are copied in their place, as far as it has them.
    """
    files = [
        file
        for file in sorted(base.folder.iterdir())
        if file.is_file() and file.suffix in BESIDE and file.name not in NOT_COPIED
    ]
    templates = base.folder / "additional_chat_templates"
    files += sorted(templates.glob("*.jinja"))
    for file in files:
        copy = folder / file.relative_to(base.folder)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, copy)
    if speaks is not None:
        for name in ASKED:
            if (speaks.folder / name).is_file():
                shutil.copyfile(speaks.folder / name, folder / name)
        dtype = dtype or next(one.dtype for one in base.tensors.stored.values() if one.is_float)
    if dtype is not None:
        config = read_json(folder / "config.json")
        config.pop("torch_dtype", None)  # its name before transformers 5
        config["dtype"] = str(dtype).removeprefix("torch.")
        text = json.dumps(config, sort_keys=True, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def write_card(
    folder: Path,
    base: str,
    base_hashes: Mapping[str, str],
    checkpoints: Sequence[Checkpoint],
    rule: Rule,
    values: Mapping[str, Any],
    adapter: bool,
    after: Sequence[Treatment] = (),
    notes: Sequence[str] = (),
    speaks: Checkpoint | None = None,
    labels: Sequence[str] = (),
    code: Sequence[str] = (),
) -> None:
    """Write the `README.md` of a merged model, which names what it was made of and how.

    Args:
        folder: the folder of the model.
        base: the base.
        base_hashes: the SHA-256 of the files of its weights.
        checkpoints: the checkpoints.
        rule: the rule.
        values: the rule's keywords.
        adapter: whether it is an adapter and not a whole model.
        after: the treatments of the merged task vector.
        notes: further lines.
        speaks: the checkpoint whose config, tokenizer and chat template were copied, None for the
            base.
        labels: the labels of an encoder's head.
        code: the lines that show how it is asked, at the end.
    """
    lines = [
        "---",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "tags: [merge, perdure]",
        "---",
        "",
        "# A merged " + ("LoRA adapter" if adapter else "model"),
        "",
        f"Perdure merged these checkpoints, in this order, with the rule `{rule.name}` "
        f"({_keywords(values)}). A checkpoint is named by its folder, and its files by their "
        "SHA-256.",
        "",
        "| | weight | file | SHA-256 |",
        "|---|---|---|---|",
        *_rows("base", base, None, base_hashes),
    ]
    for number, checkpoint in enumerate(checkpoints, start=1):
        lines += _rows(str(number), checkpoint.name, checkpoint.weight, checkpoint.hashes)
    paper = f" ([paper]({rule.paper}))" if rule.paper else ""
    lines += ["", f"Rule: `{rule.name}`{paper}."]
    for treatment in after:
        paper = f" ([paper]({treatment.paper}))" if treatment.paper else ""
        keywords = _keywords(asdict(treatment))
        lines += ["", f"Treatment after it: `{treatment.name}` ({keywords}){paper}."]
    for note in notes:
        lines += ["", note]
    if labels:
        names = ", ".join(f"`{label}`" for label in labels)
        lines += ["", f"Labels of the head ({HEAD_WEIGHTS}), in its order: {names}."]
    if not adapter:
        whose = f"`{Path(speaks.name).name}`" if speaks else "the base"
        lines += ["", f"Config, tokenizer and chat template are those of {whose}."]
    if code:
        lines += ["", *code]
    (folder / CARD).write_text(printable("\n".join([*lines, ""])), encoding="utf-8")


def _keywords(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _rows(what: str, name: str, weight: float | None, hashes: Mapping[str, str]) -> list[str]:
    shown = Path(name).name.replace("|", "/")
    weighed = "" if weight is None else f"{weight:g}"
    return [
        f"| {what}: {shown} | {weighed} | {file} | `{sha256}` |"
        for file, sha256 in sorted(hashes.items())
    ]
