"""Times Perdure side by side with what a user would otherwise run, as ratios.

    python benchmarks/speed.py [--only NAME ...] [--pairs N] [--threads N]

Each record is a ratio of two times that are measured in turn in one process: ours, theirs, ours,
theirs, and so on. `ratio` is the median over the pairs of ours divided by theirs, `low` and `high`
are the quartiles. Below 1, Perdure is faster. `--only` makes some records again and keeps the
others of `benchmarks/results/speed.json`.

`base: smollm2` (`make smollm2`) is the model of most records, in fp32.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any


os.environ["HF_HUB_OFFLINE"] = "1"

import architectures
import torch
from minilm import minilm
from peft import LoraConfig, get_peft_model
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    logging,
)

from perdure import api
from perdure.data.generated import TASKS, generated_rows
from perdure.measure.predict import predict
from perdure.methods.recurrent_kif.method import RecurrentKIF
from perdure.models.base import Base, load_base
from perdure.models.smollm2 import smollm2
from perdure.parsing import read_json
from perdure.reporting.results import device, write


RESULTS = Path(__file__).parent / "results" / "speed.json"
STEPS = 6  # of a training, of which the first is not timed
RATE = 1e-4
# Of a decoder with about 30 million parameters, most of them in its layers.
DECODER = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
Seconds = Callable[[], float]


class Clock(TrainerCallback):
    """Records how long the steps of a training take."""

    def __init__(self):
        self.seconds: list[float] = []
        self.began = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.began)

    def step(self) -> float:
        """The median seconds of a step since the last call, without the first one."""
        median = statistics.median(self.seconds[1:])
        self.seconds = []
        return median

    def total(self) -> float:
        """The seconds of all steps since the last call."""
        total = sum(self.seconds)
        self.seconds = []
        return total


class RoundClock(TrainerCallback):
    """Records when each step of a training began, so that all between two steps is counted.

    A method's own steps, which it takes at the end of a step, are thus in the time of a round.
    """

    def __init__(self, steps: int):
        self.steps = steps  # of a round
        self.began: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.began.append(time.perf_counter())

    def step(self) -> float:
        """The mean seconds of a step of the last round; all rounds before it warm up."""
        return (self.began[-1] - self.began[-1 - self.steps]) / self.steps


def rows_of(prompts: list[str], answers: list[str]) -> list[dict[str, str]]:
    pairs = zip(prompts, answers, strict=True)
    return [{"prompt": prompt, "completion": answer} for prompt, answer in pairs]


def training(rows: int, steps: int = STEPS) -> dict[str, Any]:
    """The settings that both sides train with."""
    return {
        "max_steps": steps,
        "per_device_train_batch_size": rows,
        "learning_rate": RATE,
        "logging_strategy": "no",
    }


def engine_step(
    base: str,
    rows: list[dict[str, str]],
    batch: int,
    lineage: str = "engine",
    seconds_of: Callable[[Clock], float] = Clock.step,
    **more: Any,
) -> Seconds:
    """How long a step of `perdure.learn` takes, or what else `seconds_of` says."""
    settings = {
        "base": base,
        "method": "sequential",
        "adapter": LORA,
        "guard": False,
        "training": training(batch),
        "threads": torch.get_num_threads(),
        **more,
    }
    clock, names = Clock(), iter(range(1000))
    api.init(lineage, config=settings)

    def seconds() -> float:
        api.learn(lineage, f"task-{next(names)}", train=rows, callbacks=[clock])
        return seconds_of(clock)

    return seconds


def trainer_step(model: Any, features: list[dict[str, Any]], batch: int, pad: int) -> Seconds:
    """How long a step of transformers' Trainer takes on the same tokens."""
    fill = {"input_ids": pad, "attention_mask": 0, "labels": -100}

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            key: pad_sequence([row[key] for row in rows], True, fill[key])
            if rows[0][key].dim()
            else torch.stack([row[key] for row in rows])
            for key in rows[0]
        }

    clock = Clock()
    arguments = TrainingArguments(
        output_dir="trainer",
        save_strategy="no",
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        **training(batch),
    )

    def seconds() -> float:
        trainer = Trainer(
            model, arguments, train_dataset=features, data_collator=collate, callbacks=[clock]
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return clock.step()

    return seconds


def engine_over_trainer_smollm2() -> tuple[Seconds, Seconds]:
    """A step of 4 rows of 64 tokens with 4 labelled ones, LoRA r 8 on all linear layers."""
    folder = str(smollm2())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt, answer = " cat" * 60, " red green blue"
    rows = rows_of([prompt] * 32, [answer] * 32)
    ids = tokenizer(prompt + answer)["input_ids"] + [tokenizer.eos_token_id]
    assert len(ids) == 64, len(ids)
    tensor = torch.tensor(ids)
    labels = tensor.clone()
    labels[:60] = -100
    feature = {"input_ids": tensor, "attention_mask": torch.ones_like(tensor), "labels": labels}
    config = LoraConfig(**LORA, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), config)
    return (
        engine_step(folder, rows, 4, adapter={**LORA, "target_modules": "all-linear"}),
        trainer_step(model, [feature] * 32, 4, tokenizer.pad_token_id),
    )


def engine_over_trainer_minilm() -> tuple[Seconds, Seconds]:
    """A step of 8 rows of 64 tokens with 4 labels, LoRA r 8 on query and value."""
    folder = str(minilm())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt, answers = "cat " * 62, ["red", "green", "blue", "bird"]
    rows = rows_of([prompt.strip()] * 64, answers * 16)
    ids = torch.tensor(tokenizer(prompt)["input_ids"])
    assert len(ids) == 64, len(ids)
    features = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(i % 4)}
        for i in range(64)
    ]
    config = LoraConfig(**LORA, target_modules=["query", "value"], task_type="SEQ_CLS")
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=4)
    adapter = {**LORA, "target_modules": ["query", "value"]}
    return (
        engine_step(folder, rows, 8, adapter=adapter),
        trainer_step(get_peft_model(plain, config), features, 8, tokenizer.pad_token_id),
    )


def small_decoder(folder: Path) -> str:
    """A Llama of 4 layers with random weights, and the tokenizer of SmolLM2, as a base."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def grouped_over_random() -> tuple[Seconds, Seconds]:
    """An epoch of 512 rows of 8 to 256 tokens (median 45) in batches of 8, grouped or at random."""
    return uneven_epoch("group_by_length"), uneven_epoch("random")


def padding_free_over_random() -> tuple[Seconds, Seconds]:
    """The same epoch at random, with the rows of a batch end to end in one sequence, or padded."""
    return uneven_epoch("random", padding_free=True), uneven_epoch("random")


def uneven_epoch(strategy: str, padding_free: bool = False) -> Seconds:
    """How long an epoch of 512 rows takes a small decoder with LoRA r 8 on all linear layers."""
    base = small_decoder(Path("decoder").absolute())
    # Log-normal, cut off at both ends.
    normal = statistics.NormalDist(mu=0.0, sigma=0.9)
    lengths = [45 * math.exp(normal.inv_cdf((i + 0.5) / 512)) for i in range(512)]
    rows = rows_of([" cat" * min(max(round(n), 8) - 2, 254) for n in lengths], [" red"] * 512)

    return engine_step(
        base,
        rows,
        batch=8,
        lineage="packed" if padding_free else strategy,
        seconds_of=Clock.total,
        adapter={**LORA, "target_modules": "all-linear"},
        training={
            **training(8, steps=64),
            "train_sampling_strategy": strategy,
            "padding_free": padding_free,
        },
    )


def full_step_over_bound() -> tuple[Seconds, Seconds]:
    """Recurrent-KIF on all weights of a 30 M decoder, by its steps alone: 4 rows of 16 tokens."""
    names = iter(range(1000))
    folder = str(architectures.make("llama", Path("decoder"), **DECODER).resolve())
    rows = rows_of(["red " * 10 + "cat dog"] * 32, ["one two"] * 32)
    inner, outer = RecurrentKIF.inner_steps, RecurrentKIF.outer_steps

    def step(method: str, name: str) -> Seconds:
        settings = {
            "base": folder,
            "method": method,
            "adapter": None,
            "guard": False,
            "memory": {"ratio": 0.5},
            "training": training(4, steps=2 * inner + 1),
            "threads": torch.get_num_threads(),
        }
        clock = RoundClock(inner)
        api.init(name, config=settings)

        def seconds() -> float:
            api.learn(name, f"task-{next(names)}", train=rows, callbacks=[clock])
            return clock.step()

        return seconds

    plain, method = step("sequential", "plain"), step("recurrent_kif", "method")
    method()  # the first task is plain fine-tuning
    return method, lambda: plain() * (1 + outer / inner)


STORIES = [
    f"The {first} {animal} sat on the {second} mat and looked at the {third} door of the old house "
    "for a long time, and then it went away without a word. Later that day it came back with a "
    f"friend, and the two of them talked about the {third} garden. "
    for first, second, third in (
        ("red", "green", "blue"),
        ("green", "blue", "red"),
        ("blue", "red", "black"),
        ("black", "green", "red"),
    )
    for animal in ("cat", "dog", "bird", "fox")
]
QUESTIONS = [story + "What was the colour of the mat? Answer:" for story in STORIES]
COLOURS = [" red", " green", " blue", " black"]


def plain_smollm2() -> tuple[Base, Any]:
    """SmolLM2 as a base without an adapter, and its tokenizer."""
    base = load_base(str(smollm2()), None, 0)
    base.model.eval()
    return base, base.tokenizer


def options_over_lm_eval(end: bool = True) -> tuple[Seconds, Seconds]:
    """16 prompts of about 60 tokens with 4 options, scored with the token that ends an answer."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    base, tokenizer = plain_smollm2()
    rows = rows_of(QUESTIONS, [COLOURS[0]] * len(QUESTIONS))
    harness = HFLM(pretrained=base.model, tokenizer=tokenizer, batch_size=32)
    requests = [
        Instance("loglikelihood", {}, (question, colour + tokenizer.eos_token * end), i)
        for i, question in enumerate(QUESTIONS)
        for colour in sorted(COLOURS)
    ]
    answers: dict[str, list[str]] = {}

    def ours() -> float:
        began = time.perf_counter()
        answers["ours"], _ = predict(base, rows, "options", COLOURS, 256, 8, batch_size=32)
        return time.perf_counter() - began

    def theirs() -> float:
        began = time.perf_counter()
        scores = [score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)]
        seconds = time.perf_counter() - began
        chosen = [scores[i : i + 4].index(max(scores[i : i + 4])) for i in range(0, 64, 4)]
        answers["theirs"] = [sorted(COLOURS)[i] for i in chosen]
        assert not end or answers["ours"] == answers["theirs"], answers
        return seconds

    return ours, theirs


def options_over_lm_eval_without_end() -> tuple[Seconds, Seconds]:
    """The same, but lm-eval scores the options of one token alone, each prompt in one pass."""
    return options_over_lm_eval(end=False)


def generate_over_plain_batched() -> tuple[Seconds, Seconds]:
    """Answers of at most 32 tokens to 16 prompts, for exact match, of a base that rambles."""
    base, tokenizer = plain_smollm2()
    prompts = [story + "The colour of the mat was" for story in STORIES]
    rows = rows_of(prompts, [" green"] * len(prompts))
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=True)

    def ours() -> float:
        began = time.perf_counter()
        predict(base, rows, "generate", None, 256, 32, batch_size=16, exact=True)
        return time.perf_counter() - began

    def theirs() -> float:
        began = time.perf_counter()
        with torch.no_grad():
            ids = base.model.generate(**batch, max_new_tokens=32, do_sample=False)  # type: ignore
        tokenizer.batch_decode(ids)
        return time.perf_counter() - began

    return ours, theirs


def help_over_imports() -> tuple[Seconds, Seconds]:
    """`perdure --help`, over the import of typer and rich, each in a process of its own."""

    def process(code: str) -> Seconds:
        def seconds() -> float:
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
            return time.perf_counter() - began

        return seconds

    return process("from perdure.cli import main; main(['--help'])"), process("import typer, rich")


def growth_stage50_over_stage2() -> tuple[Seconds, Seconds]:
    """Learning 200 rows as stage 50 over learning them as stage 2, with `scoring.sample`."""
    # CPU seconds of all that `perdure.learn` does, on the default base, with replay and the guard;
    # each task has 100 test rows. Each is new, and is learned from stage 49 of one lineage and from
    # stage 1 of another, which are then reverted. Stages 2 to 48 were learned in 10 steps each.
    settings = {
        "base": "default",
        "method": "replay",
        "adapter": {**LORA, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]},
        "training": {**training(8), "learning_rate": 5e-3, "max_steps": 50},
        "scoring": {"sample": 100},
        "max_length": 64,
        "max_completion_length": 4,
        "threads": torch.get_num_threads(),
    }

    def learn(lineage: str, number: int, **more: Any) -> float:
        rows = {}
        for split, count in (("train", 200), ("test", 100)):
            task = TASKS[number % len(TASKS)]
            rows[split] = Path(f"{number}-{split}.jsonl")
            lines = map(json.dumps, generated_rows(task, split, count, seed=number))
            rows[split].write_text("\n".join(lines))
        began = time.process_time()
        api.learn(lineage, f"task-{number}", **rows, **more)
        return time.process_time() - began

    for lineage, stages in (("long", 49), ("short", 1)):
        api.init(lineage, config=settings)
        for number in range(1, stages + 1):
            is_quick = 1 < number < stages
            learn(lineage, number, training={"max_steps": 10} if is_quick else None)

    def next_stage(lineage: str, stage: int) -> Seconds:
        numbers = iter(range(50, 1000))

        def seconds() -> float:
            taken = learn(lineage, next(numbers))
            api.revert(lineage, to=stage)
            return taken

        return seconds

    return next_stage("long", 49), next_stage("short", 1)


RECORDS = {
    function.__name__: function
    for function in (
        options_over_lm_eval,
        options_over_lm_eval_without_end,
        generate_over_plain_batched,
        engine_over_trainer_smollm2,
        engine_over_trainer_minilm,
        grouped_over_random,
        padding_free_over_random,
        help_over_imports,
        growth_stage50_over_stage2,
        full_step_over_bound,
    )
}


def measured(name: str, pairs: int) -> dict[str, Any]:
    """Measure ours and theirs in turn, after one pair that is not counted."""
    ours, theirs = RECORDS[name]()
    ours(), theirs()
    times = [(ours(), theirs()) for _ in range(pairs)]
    low, ratio, high = statistics.quantiles([one / other for one, other in times], n=4)
    return {
        "name": name,
        "what": (RECORDS[name].__doc__ or "").strip(),
        "ratio": round(ratio, 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "ours": round(statistics.median(one for one, _ in times), 4),
        "theirs": round(statistics.median(other for _, other in times), 4),
        "pairs": pairs,
        "threads": torch.get_num_threads(),
    }


@contextmanager
def workplace() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=RECORDS, default=list(RECORDS))
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for name in arguments.only:
        with workplace():
            record = measured(name, arguments.pairs)
        print("{name}: {ratio} ({low} to {high})".format(**record), flush=True)
        old = read_json(RESULTS)["records"] if RESULTS.exists() else []
        records = {r["name"]: r for r in old if r["name"] in RECORDS} | {name: record}
        ordered = [records[other] for other in RECORDS if other in records]
        command = f"python benchmarks/speed.py --threads {arguments.threads}"
        command += f" --pairs {arguments.pairs}"
        write(RESULTS, "speed", command, device(arguments.threads), ordered)


if __name__ == "__main__":
    main()
