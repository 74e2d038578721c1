"""The model card of a stage: what it was trained on, its scores, its verdict, and code that runs.

A card goes wherever the stage goes, also to the hub, so it has no text of a row and no answer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from perdure.lineage.history import learned_by
from perdure.lineage.lineage import Lineage
from perdure.models.kinds import Kind
from perdure.printable import printable
from perdure.reporting.results import method_in_words
from perdure.reporting.verdict import words


Form = Literal["adapter", "weights", "merged"]
LOAD = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "encoder": "AutoModel",
}
WHAT = {
    "adapter": "This is a PEFT adapter for `{base}`",
    "weights": "This is `{base}` with all of its weights trained",
    "merged": "This is `{base}` with everything that was learned in its weights",
}
WITHIN = """\
If this folder has no `adapter_model.safetensors`, the adapter is within that of a later stage of
its lineage; `perdure export LINEAGE OUT --adapter --stage {stage}` writes it into a folder of its
own."""
HEAD_CODE = """
path = cached_file(stage, "head.safetensors")
head = load_file(path)
with safe_open(path, "pt") as file:
    labels = list(json.loads(file.metadata()["id2label"]).values())
batch = tokenizer("some text", return_tensors="pt")
hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
mean = (hidden * mask).sum(1) / mask.sum(1)
label = labels[(mean @ head["weight"].T + head["bias"]).argmax(-1).item()]
print(label)
"""
PLAIN_CODE = 'batch = tokenizer("some text", return_tensors="pt")'
USER_CODE = 'messages = [{"role": "user", "content": "some text"}]'
CHAT_CODE = """
batch = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
"""
SYSTEM_CODE = """
system = "You are a helpful assistant."  # write the system prompt of the training rows here
messages = [{"role": "system", "content": system}, {"role": "user", "content": "some text"}]
"""
GENERATE_CODE = """
output = model.generate(
    input_ids=batch["input_ids"],
    attention_mask=batch["attention_mask"],
    max_new_tokens=MOST,
    do_sample=False,
)
answer = output[0, START]
print(tokenizer.decode(answer, skip_special_tokens=True).strip())
"""


@dataclass(frozen=True)
class StageFacts:
    """What a card says of a stage beside its line of the ledger.

    Args:
        cells: the stage's scores with metric and number of test rows, by task (`scores.json`).
        verdict: the verdict on the stage, None if it has none.
        max_new_tokens: the most tokens of an answer.
        has_template: whether the base has a chat template.
        reshaped: whether the next stage may contain its adapter, so that its file is deleted.
    """

    cells: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    verdict: dict[str, Any] | None = None
    max_new_tokens: int = 128
    has_template: bool = False
    reshaped: bool = False


def facts_of(lineage: Lineage, entry: dict[str, Any] | None, tokenizer: Any) -> StageFacts:
    """Return what a card says of a stage that is committed; `entry` is None for the base."""
    learned = entry if entry is not None and "task" in entry else None
    return StageFacts(
        cells=lineage.scores(learned)["after"] if learned else {},
        verdict=lineage.verdict(learned) if learned else None,
        max_new_tokens=lineage.config_at(entry).max_completion_length,
        has_template=bool(tokenizer.chat_template),
    )


def model_card(
    base_kind: Kind,
    pinned: dict[str, Any],
    entry: dict[str, Any] | None,
    kind: Form,
    place: str,
    facts: StageFacts,
) -> str:
    """Return the `README.md` of a stage, with the YAML header of the hub.

    Args:
        base_kind: the kind of the base.
        pinned: the pin of the base.
        entry: the stage's line of the ledger; None for the base.
        kind: how the stage is stored, as `kind` in the ledger.
        place: what the card's code loads: a folder, or the name of a repository.
        facts: its scores, verdict and settings of generation.
    """
    name = pinned["name"]
    library = "peft" if kind == "adapter" else "transformers"
    about = [f"library_name: {library}", "tags: [continual-learning, perdure]"]
    if "revision" in pinned:  # the name of a local folder means nothing on the hub
        about.insert(0, f"base_model: {name}")
    learned = entry if entry is not None and "task" in entry else None
    description = WHAT[kind].format(base=name)
    text = ["---", *about, "---", ""]
    if learned is None:
        text += ["# The base", "", f"{description}; no task has been learned yet.", ""]
    else:
        text += _about(learned, description, facts)
    text += ["## How to use it", "", *_asked(base_kind, learned, facts), ""]
    if facts.reshaped and learned is not None:
        text += [WITHIN.format(stage=learned["stage"]), ""]
    code = [
        *_imports(base_kind, kind, name, has_head=base_kind == "encoder" and learned is not None),
        "",
        *_loading(base_kind, pinned, kind, place),
        *_answering(base_kind, learned, facts),
    ]
    return printable("\n".join([*text, "```python", *code, "```", ""]))


def encoder_code(pinned: dict[str, Any], kind: Form) -> list[str]:
    """Return the code by which an encoder with a head in the folder of its card is asked.

    Args:
        pinned: the pin of the base, of which only name and revision are read.
        kind: how it is stored.
    """
    code = [
        *_imports("encoder", kind, pinned["name"], has_head=True),
        "",
        *_loading("encoder", pinned, kind, "."),
        *HEAD_CODE.strip().splitlines(),
    ]
    return ["```python", *code, "```"]


def _about(entry: dict[str, Any], description: str, facts: StageFacts) -> list[str]:
    """Return what the stage is, the table of its scores, and its verdict in words."""
    made = {"adopt": "adopted by", "merge": "merged by"}.get(entry["verb"], "trained with")
    is_without = "undone" in entry
    includes_earlier = entry["mode"] != "per_task" and entry["parent"] > 0 and not is_without
    lines = [
        f"# Stage {entry['stage']}: {'without ' * is_without}{entry['task']['name']}",
        "",
        f"{description}. It was {made} Perdure "
        f"(mode `{entry['mode']}`, method `{method_in_words(entry['method'])}`).",
        *["It includes the tasks of all earlier stages."] * includes_earlier,
        "",
        "| task | score after this stage | test rows (n) | metric |",
        "|---|---|---|---|",
    ]
    for task, score in entry["scores"].items():
        cell = facts.cells.get(task, {})
        number, rows = "-" if score is None else f"{score:.3f}", cell.get("rows", "-")
        if "of" in cell:
            low, high = cell["interval"]
            number, rows = f"{number} ({low:.3f} to {high:.3f})", f"{rows} of {cell['of']}"
        lines.append(f"| {task} | {number} | {rows} | {cell.get('metric', '-')} |")
    lines.append("")
    if facts.verdict is not None:
        verdict = [line for line, _ in words(_public(facts.verdict), entry["stage"])]
        lines += ["What this stage gained and lost:", "", "```text", *verdict, "```", ""]
    return lines


def _public(judged: dict[str, Any]) -> dict[str, Any]:
    """Return a verdict without the texts of answers and without advice to the lineage's owner."""

    def without_answer(change: dict[str, Any] | None) -> dict[str, Any] | None:
        count, _, what = ((change or {}).get("collapse") or "").partition(" are ")
        if change is None or not what.startswith(("'", '"')):
            return change
        return {**change, "collapse": f"{count} are the same"}

    old = {name: without_answer(change) for name, change in judged["old"].items()}
    learned = without_answer(judged["learned"])
    return {**judged, "learned": learned, "old": old, "suggestion": None}


def _asked(base_kind: Kind, entry: dict[str, Any] | None, facts: StageFacts) -> Sequence[str]:
    """Return how the model is asked: in the chat template or not, and with a system prompt or not.

    The template is that of the base, which is stored with its tokenizer.
    """
    if base_kind == "encoder":
        return [
            "The code answers with one of the labels of the tasks." if entry else "It is loaded:"
        ]
    if not facts.has_template:
        return ["Chat template: none. The prompt is plain text, as in the training rows."]
    if entry is not None and not _is_chat(entry):
        return ["Chat template: not used, as the training rows of the last task are plain text."]
    system = "one, as in the training rows; its text is not stored here"
    if entry is None or not _has_system(entry):
        system = "none"
    return ["- Chat template: that of the base.", f"- System prompt: {system}."]


def _is_chat(entry: dict[str, Any]) -> bool:
    return any(task.get("chat", False) for task in learned_by(entry))


def _has_system(entry: dict[str, Any]) -> bool:
    return any(task.get("system", False) for task in learned_by(entry))


def _imports(base_kind: Kind, kind: Form, name: str, has_head: bool) -> list[str]:
    lines = []
    if kind == "adapter" and name == "default":
        lines += ["from importlib.resources import files", ""]
    if has_head:
        lines += ["import json", "", "from safetensors import safe_open"]
        lines += ["from safetensors.torch import load_file"]
    if kind == "adapter":
        if name == "smollm2":
            lines += ["from perdure.models.pins import locate"]
        lines += ["from peft import PeftModel"]
    lines += [f"from transformers import {LOAD[base_kind]}, AutoTokenizer"]
    return lines + ["from transformers.utils import cached_file"] * has_head


def _loading(base_kind: Kind, pinned: dict[str, Any], kind: Form, place: str) -> list[str]:
    """Return the lines that load the tokenizer and the model."""
    auto, name, revision = LOAD[base_kind], pinned["name"], pinned.get("revision")
    here = "  # the folder of this card" if place == "." else ""
    lines: list[str] = [f'stage = "{place}"{here}']
    if kind != "adapter":
        lines += ["tokenizer = AutoTokenizer.from_pretrained(stage)"]
        lines += [f"model = {auto}.from_pretrained(stage).eval()"]
        return lines
    if name == "default":
        lines += ['base = str(files("perdure") / "default_model")']
    elif name == "smollm2":
        lines += ['base = locate("smollm2")']
    elif "revision" in pinned:
        lines += [f'base = "{name}"']
    else:
        named = json.dumps(name, ensure_ascii=False)  # a folder may have any name
        lines += [f"base = {named}  # the folder of the base, as it was named to Perdure"]
    pin = f', revision="{revision}"' if revision else ""
    return [
        *lines,
        f"tokenizer = AutoTokenizer.from_pretrained(base{pin})",
        f"model = {auto}.from_pretrained(base{pin})",
        "model = PeftModel.from_pretrained(model, stage).eval()",
    ]


def _answering(base_kind: Kind, entry: dict[str, Any] | None, facts: StageFacts) -> list[str]:
    """Return the lines that ask the model and print its answer."""
    if base_kind == "encoder":
        return list(HEAD_CODE.strip().splitlines() if entry is not None else [])
    question: str = PLAIN_CODE
    if facts.has_template and (entry is None or _is_chat(entry)):
        has_system = entry is not None and _has_system(entry)
        question = (SYSTEM_CODE if has_system else USER_CODE).strip() + CHAT_CODE.rstrip()
    start = 'batch["input_ids"].shape[1] :' if base_kind == "causal" else ":"
    generate = GENERATE_CODE.replace("MOST", str(facts.max_new_tokens)).replace("START", start)
    return [*question.splitlines(), *generate.strip().splitlines()]
