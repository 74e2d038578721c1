"""The model card of a stage, which describes the stage and has the code that loads it."""

from collections.abc import Sequence
from typing import Any, Literal

from perdure.models.kinds import Kind


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
HEAD_CODE = """
path = cached_file("PLACE", "head.safetensors")
head = load_file(path)
with safe_open(path, "pt") as file:
    labels = list(json.loads(file.metadata()["id2label"]).values())
batch = tokenizer("some text", return_tensors="pt")
hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
mean = (hidden * mask).sum(1) / mask.sum(1)
label = labels[(mean @ head["weight"].T + head["bias"]).argmax(-1).item()]
"""


def model_card(
    base_kind: Kind,
    pinned: dict[str, Any],
    entry: dict[str, Any] | None,
    kind: Form,
    place: str,
    verdict: Sequence[str] = (),
) -> str:
    """Return the `README.md` of a stage, with the YAML header of the hub.

    Args:
        base_kind: the kind of the base.
        pinned: the pin of the base.
        entry: the stage's line of the ledger; None for the base.
        kind: how the stage is stored, as `kind` in the ledger.
        place: what the card's code loads: a folder, or the name of a repository.
        verdict: the lines of the verdict on the stage.
    """
    name = pinned["name"]
    library = "peft" if kind == "adapter" else "transformers"
    about = [f"library_name: {library}", "tags: [continual-learning, perdure]"]
    if "revision" in pinned:  # the name of a local folder means nothing on the hub
        about.insert(0, f"base_model: {name}")
    description = WHAT[kind].format(base=name)
    head = HEAD_CODE if base_kind == "encoder" and entry is not None and "task" in entry else ""
    code = _code(base_kind, name, kind, place, head)
    return "\n".join(["---", *about, "---", "", *_about(entry, description, verdict), *code])


def _about(entry: dict[str, Any] | None, description: str, verdict: Sequence[str]) -> list[str]:
    if entry is None or "task" not in entry:
        return ["# The base", "", f"{description}; no task has been learned yet.", ""]
    includes_earlier = entry["mode"] != "per_task" and entry["parent"] > 0
    scores = [
        f"| {task} | {'-' if score is None else f'{score:.3f}'} |"
        for task, score in entry["scores"].items()
    ]
    return [
        f"# Stage {entry['stage']}: {entry['task']['name']}",
        "",
        f"{description}. It was trained with Perdure "
        f"(mode `{entry['mode']}`, method `{entry['method']}`).",
        *["It includes the tasks of all earlier stages."] * includes_earlier,
        "",
        "| task | score after this stage |",
        "|---|---|",
        *scores,
        "",
        *(["```text", *verdict, "```", ""] if verdict else []),
    ]


def _code(base_kind: Kind, name: str, kind: Form, place: str, head: str) -> list[str]:
    auto, adapter = LOAD[base_kind], kind == "adapter"
    lines = []
    if head:
        lines += ["import json", "", "from safetensors import safe_open"]
        lines += ["from safetensors.torch import load_file"]
    lines += ["from peft import PeftModel"] * adapter
    lines += [f"from transformers import {auto}, AutoTokenizer"]
    lines += [*["from transformers.utils import cached_file"] * bool(head), ""]
    source = f'"{place}"'
    if adapter:
        source = "base"
        if name == "default":
            lines = ["from importlib.resources import files", "", *lines]
            lines += ['base = str(files("perdure") / "default_model")']
        elif name == "smollm2":
            lines = ["from perdure.models.pins import locate", *lines, 'base = locate("smollm2")']
        else:
            lines += [f'base = "{name}"']
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({source})"]
    lines += [f"model = {auto}.from_pretrained({source})" + ("" if adapter else ".eval()")]
    lines += [f'model = PeftModel.from_pretrained(model, "{place}").eval()'] * adapter
    lines += head.replace("PLACE", place).rstrip().split("\n") if head else []
    return ["```python", *lines, "```", ""]
