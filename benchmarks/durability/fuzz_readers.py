"""The readers of files that the fuzzer tries, each with valid documents, in a small lineage."""

import contextlib
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fuzz_inputs import (
    GZIP_BOMBS,
    JSON_BOMBS,
    SAFETENSORS_BOMBS,
    YAML_BOMBS,
    as_csv,
    as_gzip,
    as_json,
    as_lines,
    as_safetensors,
    as_yaml,
)

from perdure.comparison.cell import Cell
from perdure.comparison.grid import read_grid
from perdure.config import load_config
from perdure.data.conversations import read_conversations
from perdure.data.generated import TASKS
from perdure.data.opening import open_split
from perdure.data.probes import read_probes
from perdure.data.rows import hash_rows, read
from perdure.errors import PerdureError
from perdure.lineage.answers import stored_answers
from perdure.lineage.guard_answers import stored_guard_answers
from perdure.lineage.history import learned_by
from perdure.lineage.ledger import read_ledger
from perdure.lineage.lineage import Lineage
from perdure.lineage.loading import _adapter as stored_adapter
from perdure.lineage.mending import mend_ledger
from perdure.lineage.schema import check_ledger
from perdure.lineage.sources import remembered
from perdure.measure.guard.lm_eval_result import read_kept
from perdure.measure.guard.rows import read_guard_rows
from perdure.measure.matrix import summary
from perdure.measure.verdict import lost_now
from perdure.models.as_is import base_of_adapter
from perdure.models.base import load_config_and_tokenizer
from perdure.models.checkpoints import _shapes as shapes_of_tensors
from perdure.models.pins import DEFAULT
from perdure.reporting.importance import identified
from perdure.reporting.outcomes import stage_verdicts
from perdure.reporting.read import _dev_curves, _line, _scoring, _test_rows
from perdure.reporting.results import load, stage_seconds
from perdure.reporting.samples import sample_answers
from perdure.reporting.verdict import losses, words
from perdure.train.checkpoints import damage
from perdure.verbs.init import _read as read_adapter
from perdure.verbs.verdict import changed_rows


STAGE = Path("lineage/stages/0002-animal")
SHA = "0" * 64


@dataclass(frozen=True)
class Reader:
    """A function that reads files.

    Args:
        name: its name.
        file: the file that it reads.
        documents: plain data that `pack` writes as valid files.
        pack: writes plain data as the bytes of a file.
        bombs: hostile files.
        reads: reads the file, and does with its content what a verb does.
    """

    name: str
    file: str
    documents: list[Any]
    pack: Callable[[Any], bytes]
    bombs: list[bytes]
    reads: Callable[[Path], Any]

    def path(self) -> Path:
        return Path(self.file)

    def read(self, path: Path) -> None:
        self.reads(path)


# --- a lineage of two stages, without its weights

ROWS = [{"prompt": "question the alpha = answer : ", "completion": "red"}] * 2
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "You answer."},
            {"role": "user", "content": [{"type": "text", "text": "What is two?"}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "Two.", "weight": 1, "train": True},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "chat_template_kwargs": {"thinking": False},
    },
    {
        "prompt": [{"role": "user", "content": "One?"}],
        "completion": [{"role": "assistant", "content": "1"}],
        "references": ["one", "One."],
    },
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"instruction": "Say", "input": "it", "output": "so", "history": [["a", "b"]], "system": "s"},
    {"text": "A text.", "label": "good", "weight": 1, "score": 0.5},
]
GUARD_ROWS = [
    {
        "id": "a",
        "skill": "facts",
        "language": "en",
        "prompt": "What is the capital of France?",
        "check": {"says": ["Paris"], "words": [1, 40], "number": 3, "refuses": False},
    },
    {"messages": [{"role": "user", "content": "x"}], "check": {"json_keys": ["a"], "lines": 2}},
]
SETTINGS: dict[str, Any] = {
    "method": ["replay", {"recurrent_kif": {"inner_steps": 2}}],
    "mode": "sequential",
    "tasks": [{"name": "colour", "train": "colour-train.jsonl", "metric": "exact_match"}],
    "adapter": {"peft_type": "LORA", "r": 16, "target_modules": "all-linear"},
    "training": {"learning_rate": 0.01, "num_train_epochs": 1},
    "memory": {"ratio": 0.1},
    "general": {"file": {"path": "general.jsonl", "prompt": "{a}", "completion": "{b}"}},
    "guard": {"limit": 3, "lm_eval": {"tasks": ["a"]}},
    "gate": {"forgetting": 0.1, "kl": None},
    "max_length": 32,
    "seed": 0,
}
FEW = {key: SETTINGS[key] for key in ("method", "tasks", "general", "max_length")}
PIN = {"name": "base", "files": {"config.json": SHA, "model.safetensors": SHA}}
CELL = {"score": 0.5, "mode": "generate", "metric": "exact_match", "rows": 8, "truncated": 0}
DEV = {
    "rows": 4,
    "metric": "loss",
    "curve": [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}],
    "best": 1,
    "weights_of": 1,
    "stopped": False,
}
SCORES = {
    "base": {"animal": CELL},
    "before": {"animal": CELL},
    "after": {"animal": CELL, "colour": CELL},
    "dev": DEV,
    "truncated": 0,
}
CHANGE = {"before": 0.5, "after": 0.25, "rows": 8, "fell": 5, "rose": 0, "p": 0.03}
HARNESS = {
    "arc": {
        **{"metric": "acc", "filter": "none", "higher_is_better": True, "documents": 9},
        **{"before": 0.5, "now": 0.4, "fell": 3, "rose": 1, "p": 0.1, "net": 0.2, "lost": False},
        **{"since": {"fell": 0, "rose": 0, "p": 1.0}, "lost_before": False},
    }
}
FORM = {"tokens": 3.5, "empty": 0.0, "equal": 0.25}
MEASURED = {
    **{"reference": "the base", "model": "stage 2", "chat_template": True, "judged": True},
    **{"lost": True, "rows": 40, "passed_by_reference": 30, "passed": 20, "fell": 12, "rose": 2},
    **{"p": 0.006, "net": 0.25, "kl": 0.4, "same_vocabulary": True, "before": FORM, "now": FORM},
    "skills": {"facts": {"rows": 40, "fell": 12, "rose": 2}},
    **{"since": {"fell": 1, "rose": 0, "p": 0.5}, "lost_before": False},
    **{"checks": {"lost": True, "lost_before": False}, "lm_eval": HARNESS},
}
VERDICT = {
    "task": "animal",
    "learned": {**CHANGE, "collapse": None},
    "old": {"colour": {**CHANGE, "collapse": "all 8 answers are empty"}},
    "lost": ["colour"],
    "lost_before": [],
    "unmeasured": ["count"],
    "general": {"unmeasured": "the guard is switched off"},
    "suggestion": "look at the rows",
}
ANSWERS = {"answers": ["red", "blue"], "scores": [1.0, 0.0]}
PREDICTIONS = {
    "before": {"animal": ANSWERS},
    "after": {"animal": {"answers": ["red", "red"], "scores": [1.0, 1.0]}, "colour": ANSWERS},
}
GENERATED = {"prompt": [1, 2], "ids": [3], "ended": True, "text": "Paris"}
GUARD_ANSWERS = {
    "a": {
        **{"question": "0123", "prompt": "What?", "base": GENERATED, "base_passes": True},
        **{"answer": "Lyon", "passes": False},
    }
}
LM_EVAL = {"responses": {"0": [0.5, True]}, "values": {"arc": {"d": 1.0, "e": None}}}
TIMINGS = {
    "2": {
        "date": "2026-11-26T15:53:56+00:00",
        **{"host": "vm", "peak_memory_kib": 562964, "row_tokens": 9.0, "steps": 3},
        "rehearsed": {"mean": 10.0, "most": 10, "rows": 6},
        "rows": {"backward": 84, "forward": 84},
        "seconds": {"cpu": 0.8937, "prepare": 0.0148, "score": 0.1327, "train": 0.9849},
    }
}
ADAPTER = {
    **{"peft_type": "LORA", "base_model_name_or_path": "base", "task_type": "CAUSAL_LM"},
    **{"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "bias": "none", "revision": None},
    **{"target_modules": ["q_proj", "v_proj"], "modules_to_save": None, "rank_pattern": {"q": 4}},
    **{"init_lora_weights": True, "use_dora": False, "loftq_config": {}, "auto_mapping": None},
}
BASE = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32"},
    **{"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8},
    **{"num_hidden_layers": 2, "num_key_value_heads": 2, "vocab_size": 22, "hidden_act": "silu"},
    **{"max_position_embeddings": 64, "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2},
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
TENSORS = {
    "__metadata__": {"format": "pt", "id2label": '{"0": "a"}'},
    "recurrent_kif.shares": {"dtype": "F32", "shape": [1, 4], "data_offsets": [0, 16]},
    "recurrent_kif.important.model.layers.0.q_proj.weight": {
        **{"dtype": "I64", "shape": [3], "data_offsets": [16, 40]},
    },
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [40, 64]},
}
RECORD = {"method": "replay", "order": "a", "seed": 0, "overall": 0.5, "seconds": 1.0}


def _sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


WRITTEN = {"format": 1, **FEW, "max_length": 64, "base": {"name": "base", "files": {}}}
RECORDS: Mapping[str, tuple[Any, Callable[[Any], bytes]]] = {
    "scores.json": (SCORES, as_json),
    "verdict.json": (VERDICT, as_json),
    "predictions.json.gz": (PREDICTIONS, as_gzip(as_json)),
    "guard.json.gz": (GUARD_ANSWERS, as_gzip(as_json)),
    "lm_eval.json.gz": (LM_EVAL, as_gzip(as_json)),
    "memory.jsonl": ([*ROWS, *CHAT[:2]], as_lines),
    "adapter_config.json": (ADAPTER, as_json),
}

FILES = {name: _sha256_of(pack(document)) for name, (document, pack) in RECORDS.items()}


def rows_of(name: str) -> dict[str, Any]:
    """Return how the ledger describes rows of a file."""
    return {"source": {"path": f"../{name}.jsonl", "limit": 3, "seed": 0}, "rows": 3, "sha256": SHA}


def task(name: str) -> dict[str, Any]:
    held_out = {"held_out": {"share": 0.1, "seed": 1, "part": "test"}}
    made = {"stream": "generated", "task": TASKS[0], "split": "test", "limit": 3, "seed": 0}
    return {
        **{"id": name, "name": name, "metric": "exact_match", "options": ["red", "blue"]},
        **{"chat": True, "training": {"num_train_epochs": 2}},
        "train": rows_of(f"{name}-train"),
        "test": {**rows_of(name), "source": {**rows_of(f"{name}-train")["source"], **held_out}},
        "dev": {**rows_of(name), "source": made},
    }


def learned(stage: int, name: str, **more: Any) -> dict[str, Any]:
    """Return the line of a stage."""
    return {
        **{"stage": stage, "verb": "learn", "parent": stage - 1, "kind": "adapter"},
        **{"folder": f"stages/{stage:04d}-{name}", "mode": "sequential", "task": task(name)},
        **{"method": ["replay", {"der": {"alpha": 0.5}}], "versions": {"python": "3.11"}},
        **{"files": FILES, "scores": {name: 0.5}},
        **more,
    }


def ledger() -> list[dict[str, Any]]:
    refused = {
        key: value
        for key, value in learned(2, "count").items()
        if key not in ("kind", "versions", "verb", "parent", "folder")
    }
    return [
        {"stage": 0, "verb": "init", "parent": None, "base": PIN, "settings": FEW},
        learned(1, "colour", general=rows_of("general"), dropped=[]),
        learned(2, "animal", verb="adopt", checkpoint={"adapter_model.safetensors": SHA}),
        {
            **refused,
            **{"verb": "refused", "parent": 2, "folder": "refused/0003-count-0", "key": SHA},
            "reasons": ["colour fell by 0.5"],
        },
        {
            **{"stage": 2, "verb": "set", "parent": 2, "settings": {**FEW, "max_length": 64}},
            "changed": {"max_length": [32, 64]},
        },
        {"stage": 2, "verb": "rebase", "parent": 2, "base": {**PIN, "revision": "abc"}},
        {
            **{"stage": 2, "verb": "compact", "parent": 2, "bytes": 5},
            "dropped": ["stages/0001-colour"],
        },
        {"stage": 2, "verb": "repair", "parent": 2, "restored": ["stages/0001-colour"]},
        {"stage": 1, "verb": "revert", "parent": 2},
        learned(
            3,
            "tone",
            verb="merge",
            parent=1,
            checkpoint={"adapter_model.safetensors": SHA},
            rule={"ema": {"weight": 0.5}},
            weight=None,
            history=[{"weight": 1.0, "norm": 2.0}, {"weight": None, "norm": 1.5}],
            discarded=0.01,
        ),
        {"stage": 2, "verb": "revert", "parent": 3},
    ]


def as_ledger(entries: Any) -> bytes:
    """Write a ledger, and chain its lines."""
    lines, previous = [], ""
    for entry in entries if isinstance(entries, list) else [entries]:
        chained = {**entry, "previous": previous} if isinstance(entry, dict) else entry
        lines.append(as_json(chained))
        previous = hashlib.sha256(lines[-1]).hexdigest()
    return b"".join(line + b"\n" for line in lines)


def as_newest(line: Any) -> bytes:
    """Write a `newest.json` for a line of plain data."""
    text = line if isinstance(line, str) else as_json(line).decode()
    content = {"line": text, "sha256": hashlib.sha256(text.encode(errors="replace")).hexdigest()}
    return (json.dumps(content, sort_keys=True, ensure_ascii=False, indent=2) + "\n").encode(
        errors="surrogatepass"
    )


@contextlib.contextmanager
def place() -> Iterator[None]:
    """Make a folder with the lineage, and run the block in it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, name in ((1, "colour"), (2, "animal"), (3, "tone")):
            stage = Path(f"lineage/stages/{number:04d}-{name}")
            stage.mkdir(parents=True)
            for file, (document, pack) in RECORDS.items():
                (stage / file).write_bytes(pack(document))
        entries = ledger()
        Path("lineage/ledger.jsonl").write_bytes(as_ledger(entries))
        Path("lineage/lineage.yaml").write_bytes(as_yaml(WRITTEN))
        for name in ("colour-train", "animal-train", "general"):
            Path(f"{name}.jsonl").write_bytes(as_lines(ROWS))
        for name in ("adapter", "base", "checkpoint", "comparison/cells"):
            Path(name).mkdir(parents=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            Path("base", name).write_bytes((DEFAULT / name).read_bytes())
        lineage.cache_clear()
        yield


def _sha256(file: Path) -> str:
    return _sha256_of(file.read_bytes())


def newest() -> Any:
    """Return the last line of the ledger, with the hash of the line before it."""
    return json.loads(as_ledger(ledger()).splitlines()[-1])


@cache
def lineage() -> Lineage:
    return Lineage("lineage", edited=True)


def entry_with(file: Path) -> dict[str, Any]:
    """Return the line of the second stage with the hash that a file of it has now."""
    entry = lineage().stage_entries[2]
    entry["files"][file.name] = _sha256(file)
    return entry


# --- the readers


def read_the_ledger(path: Path) -> None:
    path.with_name("newest.json").unlink(missing_ok=True)
    entries = read_ledger(path)
    check_ledger(entries, path)
    opened = Lineage(path.parent, edited=True)
    _use_history(opened)


def _use_history(opened: Lineage) -> None:
    _ = (opened.stages, opened.next_stage, opened.dropped, opened.origin, opened.timings())
    opened.config_at(opened.ledger[1] if opened.ledger[1:] else None)
    for entry in opened.ledger:
        opened.line(entry["stage"])
        if "task" in entry:
            for described in learned_by(entry):
                for split in ("train", "dev", "test"):
                    if source := (described.get(split) or {}).get("source"):
                        _open(dict(source))
    opened.config.to_dict()


def _open(source: dict[str, Any]) -> None:
    if "hub" in source:  # a name on the hub is another thing than a file
        return
    if "path" in source:
        source["path"] = str(Path("lineage") / source["path"])
    with contextlib.suppress(PerdureError):  # the task is not scored then
        open_split(source)


def read_newest(path: Path) -> None:
    ledger_file = path.with_name("ledger.jsonl")
    entries = read_ledger(ledger_file)
    check_ledger(entries, ledger_file)


def repair_newest(path: Path) -> None:
    ledger_file = path.with_name("ledger.jsonl")
    before = ledger_file.read_bytes()
    try:
        mend_ledger(ledger_file)
    finally:
        ledger_file.write_bytes(before)


def read_written(path: Path) -> None:
    opened = Lineage(path.parent)
    opened.config.to_dict()


def read_scores(path: Path) -> None:
    entry, opened = entry_with(path), lineage()
    summary(opened.matrix())
    for use in (_dev_curves, _scoring, _test_rows):
        use(opened)
    _ = {task: cell["score"] for task, cell in opened.scores(entry)["after"].items()}


def read_verdict(path: Path) -> None:
    judged = lineage().verdict(entry_with(path))
    assert judged is not None
    lost_now(judged["general"])
    losses(judged)
    words(judged, 2)
    stage_verdicts([(2, judged)])


def read_predictions(path: Path) -> None:
    entry = entry_with(path)
    stored_answers(lineage(), entry)
    changed_rows(lineage(), entry, None, lambda line: None)
    sample_answers(lineage())


def read_guard_answers(path: Path) -> None:
    entry = entry_with(path)
    stored_guard_answers(lineage(), entry)
    changed_rows(lineage(), entry, None, lambda line: None)


def read_timings(path: Path) -> None:
    opened = lineage()
    times = opened.timings()
    stage_seconds(opened)
    for entry in opened.ledger:
        _line(opened, entry, times)


def read_rows(path: Path) -> None:
    hash_rows(read(path).rows)


def read_cell(path: Path) -> None:
    cell = Cell(line="replay", order="a", seed=0, settings={"method": "replay", "seed": 0})
    target = cell.file(Path("comparison"), ".json")
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    cell.record(Path("comparison"))


def read_adapter_settings(path: Path) -> None:
    base_of_adapter(str(path.parent))
    with contextlib.redirect_stdout(io.StringIO()):
        read_adapter(path.parent)


def read_hashes(path: Path) -> None:
    damage(path.parent)


def as_parquet(values: Any) -> bytes:
    """Write a list of mappings as a Parquet table, as far as it has types."""
    import pyarrow
    import pyarrow.parquet

    rows = [v for v in values if isinstance(v, dict)] if isinstance(values, list) else []
    buffer = io.BytesIO()
    try:
        table = pyarrow.Table.from_pylist(json.loads(json.dumps(rows)))
        pyarrow.parquet.write_table(table, buffer)
    except Exception:  # a table has one type in a column
        return as_json(values)
    return buffer.getvalue()


def parquet_bombs() -> list[bytes]:
    import pyarrow
    import pyarrow.parquet

    def repeated(text: str, times: int) -> Any:
        indices = pyarrow.array([0] * times, pyarrow.int32())
        return pyarrow.DictionaryArray.from_arrays(indices, [text])

    lists = pyarrow.ListArray.from_arrays([0, 10_000], repeated("x" * 100_000, 10_000))
    tables = {
        "one long text in many rows": pyarrow.table({"text": repeated("x" * (4 << 20), 2000)}),
        "a row of many texts": pyarrow.table({"text": lists}),
        "no columns": pyarrow.table({}),
        "a far date": pyarrow.table(
            {"text": ["a"], "when": pyarrow.array([2**62], pyarrow.timestamp("ms"))}
        ),
        "numbers": pyarrow.table({"text": pyarrow.array([1, 2])}),
        "bytes": pyarrow.table({"text": pyarrow.array([b"\xff\xfe"])}),
        "nothing": pyarrow.table({"text": pyarrow.array([], pyarrow.string())}),
    }
    bombs = []
    for table in tables.values():
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table, buffer, compression="zstd")
        bombs.append(buffer.getvalue())
    return [*bombs, b"PAR1", b"PAR1" + bytes(8) + b"PAR1", b""]


def _json(name: str, file: str, documents: list[Any], reads: Callable[[Path], Any]) -> Reader:
    return Reader(name, file, documents, as_json, list(JSON_BOMBS.values()), reads)


def _yaml(name: str, file: str, documents: list[Any], reads: Callable[[Path], Any]) -> Reader:
    return Reader(name, file, documents, as_yaml, list(YAML_BOMBS.values()), reads)


def _packed(
    name: str,
    file: str,
    documents: list[Any],
    reads: Callable[[Path], Any],
    pack: Callable[[Any], bytes],
    bombs: Mapping[str, bytes] = JSON_BOMBS,
) -> Reader:
    return Reader(name, file, documents, pack, list(bombs.values()), reads)


LEDGER_BOMBS = {
    **JSON_BOMBS,
    **{name: as_ledger([]) + bomb + b"\n" for name, bomb in JSON_BOMBS.items() if len(bomb) < 9999},
    "a cycle of parents": as_ledger(
        [*ledger()[:2], learned(2, "animal", parent=2), learned(3, "a", parent=3)]
    ),
    "a parent that comes later": as_ledger([*ledger()[:2], learned(2, "animal", parent=9)]),
    "a negative stage": as_ledger([ledger()[0], learned(-1, "a")]),
}
GZIPPED = {**GZIP_BOMBS, **{name: as_gzip(lambda b: b)(bomb) for name, bomb in JSON_BOMBS.items()}}
CSV_BOMBS = {
    **JSON_BOMBS,
    "an open quote": b'prompt,completion\n"' + b"x\n" * 500_000,
    "many columns": b",".join(b"%d" % n for n in range(300_000)) + b"\n" + b"," * 300_000,
    "many cells": b"prompt,completion\n" + b"," * 1_000_000,
    "a record of many lines": b"prompt,completion\n" + b'"\n",' * 200_000,
}
READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        _packed(
            "ledger", "lineage/ledger.jsonl", [ledger()], read_the_ledger, as_ledger, LEDGER_BOMBS
        ),
        _packed("newest", "lineage/newest.json", [newest()], read_newest, as_newest),
        _packed("repair", "lineage/newest.json", [newest()], repair_newest, as_newest),
        _yaml("lineage.yaml", "lineage/lineage.yaml", [WRITTEN], read_written),
        _json("timings", "lineage/timings.json", [TIMINGS], read_timings),
        _json("scores", f"{STAGE}/scores.json", [SCORES], read_scores),
        _json(
            "verdict",
            f"{STAGE}/verdict.json",
            [VERDICT, VERDICT | {"general": MEASURED, "learned": None}],
            read_verdict,
        ),
        _packed(
            "predictions",
            f"{STAGE}/predictions.json.gz",
            [PREDICTIONS],
            read_predictions,
            as_gzip(as_json),
            GZIPPED,
        ),
        _packed(
            "guard_answers",
            f"{STAGE}/guard.json.gz",
            [GUARD_ANSWERS],
            read_guard_answers,
            as_gzip(as_json),
            GZIPPED,
        ),
        _packed("lm_eval", "lm_eval.json.gz", [LM_EVAL], read_kept, as_gzip(as_json), GZIPPED),
        _packed(
            "memory",
            f"{STAGE}/memory.jsonl",
            [ROWS, CHAT],
            lambda path: hash_rows(remembered(lineage(), entry_with(path))),
            as_lines,
        ),
        _json(
            "stage_adapter",
            f"{STAGE}/adapter_config.json",
            [ADAPTER],
            lambda path: stored_adapter(lineage(), entry_with(path)),
        ),
        _yaml("settings", "settings.yaml", [SETTINGS | {"base": "base"}], load_config),
        _yaml(
            "comparison",
            "comparison.yaml",
            [
                {
                    **{"base": "base", "tasks": "generated", "baseline": "replay"},
                    "grid": {"method": ["replay", {"der": {"alpha": 1}}], "seed": [0, 1]},
                    "choose": {"key": "training.learning_rate", "values": [0.1, 0.01]},
                }
            ],
            read_grid,
        ),
        _packed("rows.jsonl", "rows.jsonl", [ROWS, CHAT], read_rows, as_lines),
        _json("rows.json", "rows.json", [ROWS, CHAT, {"data": ROWS}], read_rows),
        _packed("rows.csv", "rows.csv", [ROWS, CHAT[-1:]], read_rows, as_csv, CSV_BOMBS),
        _packed(
            "rows.jsonl.gz", "rows.jsonl.gz", [ROWS, CHAT], read_rows, as_gzip(as_lines), GZIPPED
        ),
        Reader(
            "rows.parquet",
            "rows.parquet",
            [ROWS, CHAT[2:3], CHAT[-1:]],
            as_parquet,
            parquet_bombs(),
            read_rows,
        ),
        _packed("guard_rows", "guard.jsonl", [GUARD_ROWS], read_guard_rows, as_lines),
        _packed(
            "probes",
            "probes.jsonl",
            [[{**row, "foil": "blue"} for row in ROWS]],
            read_probes,
            as_lines,
        ),
        _json("conversations", "messages.json", [CHAT[0]["messages"][:2]], read_conversations),
        _json("adapter", "adapter/adapter_config.json", [ADAPTER], read_adapter_settings),
        _json(
            "base_config",
            "base/config.json",
            [BASE],
            lambda path: load_config_and_tokenizer(str(path.parent)),
        ),
        _packed(
            "safetensors",
            "tensors.safetensors",
            [TENSORS],
            lambda path: shapes_of_tensors([path]),
            as_safetensors,
            SAFETENSORS_BOMBS,
        ),
        _packed(
            "method_state",
            "method.safetensors",
            [TENSORS],
            lambda path: identified(path, "colour"),
            as_safetensors,
            SAFETENSORS_BOMBS,
        ),
        _json("checkpoint", "checkpoint/sha256.json", [{"a.bin": SHA, "b/c": SHA}], read_hashes),
        _json("results", "results.json", [{"records": [RECORD]}], load),
        _json("cell", "cell.json", [{"digest": SHA, "record": RECORD}], read_cell),
    )
}
