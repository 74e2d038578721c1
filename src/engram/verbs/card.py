"""The model card of a stage: what it is, and the exact lines that load it."""

from pathlib import Path
from typing import Any

from engram.models import Base


LOAD = {
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "encoder": "AutoModel",
}
HEAD = """
head = load_file("STAGE/head.safetensors")
with safe_open("STAGE/head.safetensors", "pt") as file:
    labels = list(json.loads(file.metadata()["id2label"]).values())
batch = tokenizer("some text", return_tensors="pt")
hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
mean = (hidden * mask).sum(1) / mask.sum(1)
label = labels[(mean @ head["weight"].T + head["bias"]).argmax(-1).item()]
"""


def write_card(folder: Path, base: Base, entry: dict[str, Any]) -> None:
    """`README.md` of a stage, with the YAML header of the hub."""
    rows = "\n".join(
        f"| {task} | {'-' if score is None else f'{score:.3f}'} |"
        for task, score in entry["scores"].items()
    )
    folder.joinpath("README.md").write_text(
        f"""---
base_model: {base.name}
library_name: peft
tags: [continual-learning, engram, lora]
---

# Stage {entry["stage"]}: {entry["task"]["name"]}

A PEFT adapter on `{base.name}`, learned with Engram (mode `{entry["mode"]}`, method
`{entry["method"]}`). It holds all tasks of the stages before it as well.

| task | score after this stage |
|---|---|
{rows}

```python
{_lines(base)}```
""",
        encoding="utf-8",
    )


def _lines(base: Base) -> str:
    auto = LOAD[base.kind]
    encoder = base.kind == "encoder"
    lines = "import json\n\nfrom safetensors import safe_open\n" if encoder else ""
    lines += "from safetensors.torch import load_file\n" if encoder else ""
    lines += f"from peft import PeftModel\nfrom transformers import {auto}, AutoTokenizer\n\n"
    if base.name == "default":
        lines = "from importlib.resources import files\n\n" + lines
        lines += 'base = str(files("engram") / "default_model")\n'
    else:
        lines += f'base = "{base.name}"\n'
    lines += "tokenizer = AutoTokenizer.from_pretrained(base)\n"
    lines += f"model = {auto}.from_pretrained(base)\n"
    lines += 'model = PeftModel.from_pretrained(model, "STAGE").eval()\n'
    return lines + (HEAD if encoder else "")
