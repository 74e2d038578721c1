"""Why most methods hardly learn on Long Sequence: all texts come to look alike to the encoder.

    python benchmarks/long_sequence_why.py --data FOLDER

Reads the lineages that `long_sequence.py` left under runs/ on order 1 with seed 0, at the rate that
each method chose, and says for some stages how alike the states are that the head sees: the mean
cosine over all pairs of 300 training texts, 20 of each task. At 1 the head can tell nothing apart.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from long_sequence import ABLATION, LONG_SEQUENCE
from long_sequence_table import alike
from peft import PeftModel
from standard_cl_cell import SETTING, minilm
from transformers import AutoModel, AutoTokenizer

from engram.data.benchmarks import ORDERS, benchmark_split
from engram.reporting.results import write


HERE = Path(__file__).parent
STAGES = (1, 4, 7, 11, 15)
ROWS = 20  # of each task


def similarity(encoder: Any, batches: list[dict[str, torch.Tensor]]) -> float:
    """The mean cosine between the masked means of the last hidden states, over all pairs."""
    found = []
    for batch in batches:
        mask = batch["attention_mask"].unsqueeze(-1)
        with torch.no_grad():
            hidden = encoder.eval()(**batch).last_hidden_state
        found.append((hidden * mask).sum(1) / mask.sum(1))
    states = torch.nn.functional.normalize(torch.cat(found), dim=-1)
    n = len(states)
    return ((states @ states.T).sum().item() - n) / (n * n - n)


def batches(data: str) -> list[dict[str, torch.Tensor]]:
    """A batch a task."""
    tokenizer, found = AutoTokenizer.from_pretrained(minilm()), []
    for task in ORDERS["long_sequence_1"]:
        rows = benchmark_split(task, "train", ROWS, 0, SETTING["instruction"], data).rows
        texts = [row["prompt"] for row in rows]
        length = SETTING["max_length"]
        found.append(
            tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        )
    return found


def records(data: str) -> list[dict[str, Any]]:
    """One record a method whose lineage is there."""
    texts, found = batches(data), []
    base = {"method": "base", "order": 1, "seed": 0, "learning_rate": None}
    plain = AutoModel.from_pretrained(minilm())
    found.append({**base, "similarity": {"0": similarity(plain, texts)}})
    for method in (m for m in LONG_SEQUENCE.trials if m not in (*ABLATION, "constant", "joint")):
        cell = LONG_SEQUENCE.tests(method)[0]
        stages = LONG_SEQUENCE.runs / cell.name / "lineage" / "stages"
        seen = {}
        for stage in STAGES:
            for folder in stages.glob(f"{stage:04d}-*"):
                plain = AutoModel.from_pretrained(minilm())
                seen[str(stage)] = similarity(PeftModel.from_pretrained(plain, folder), texts)
        about = {"method": method, "order": cell.order, "seed": cell.seed}
        if seen:
            found.append({**about, "learning_rate": cell.learning_rate, "similarity": seen})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="How alike all texts look after a stage.")
    parser.add_argument("--data", default=os.environ.get("ENGRAM_DATA"), help="else ENGRAM_DATA")
    args = parser.parse_args()
    if not args.data:
        parser.error("say where the rows lie with --data FOLDER or ENGRAM_DATA")
    torch.set_num_threads(1)
    found = records(args.data)
    command = "python benchmarks/long_sequence_why.py --data FOLDER"
    path = HERE / "results" / "long_sequence_why.json"
    write(path, "long_sequence_why", command, "cpu, 1 thread", found)
    print(alike(found))


if __name__ == "__main__":
    main()
