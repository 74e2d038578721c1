"""Recurrent-KIF in TRL's SFTTrainer, and the page that tells how."""

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from methods.recurrent_kif.plain_trainer import (
    PLAIN,
    base_of,
    farthest,
    features,
    kif_callback,
    perdure_engine,
    trained,
)
from perdure.errors import PerdureError
from perdure.methods.recurrent_kif.callback_memory import features_by_task
from perdure.methods.recurrent_kif.method import RecurrentKIF
from tiny import tiny_rows, tiny_tokenizer
from train.engine import Stop, Stopped, same


# TRL 1.16 has a default under a name that transformers 5.23 has changed; nothing of ours.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning"
)

PAGE = Path(__file__).parents[3] / "docs" / "trl.md"
ROUNDS = {"inner_steps": 4, "outer_steps": 2}
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }} </s>"
    "{% endgeneration %}{% else %}{{ message['content'] }} {% endif %}{% endfor %}"
)


def arguments(work: Path, **settings: Any) -> SFTConfig:
    settings = {"bf16": False, "gradient_checkpointing": False, **PLAIN, **settings}
    return SFTConfig(output_dir=str(work), max_length=settings.pop("max_length", 64), **settings)


def sft(work: Path, rows: Any, callbacks: Any = (), base: Any = None, **settings: Any) -> Any:
    base = base or base_of("causal")
    return SFTTrainer(
        base.model,
        arguments(work, **settings),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=base.tokenizer,
        callbacks=list(callbacks),
    )


def tokens(rows: Any) -> list[dict]:
    """Rows that are tokenized already, with a mask that SFT makes labels of."""
    encoded = features("causal", "animal", len(rows))
    masks = [[int(label != -100) for label in row["labels"]] for row in encoded]
    pairs = zip(encoded, masks, strict=True)
    return [{"input_ids": row["input_ids"], "completion_mask": mask} for row, mask in pairs]


def messages(rows: Any) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"]},
            ]
        }
        for row in rows
    ]


def texts(rows: Any) -> list[dict]:
    return [{"text": f"{row['prompt']} {row['completion']}"} for row in rows]


def chats(rows: Any) -> list[dict]:
    conversations = [row["messages"] for row in messages(rows)]
    return [{"prompt": turns[:1], "completion": turns[1:]} for turns in conversations]


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        (list, {}),
        (list, {"completion_only_loss": False}),
        (list, {"max_length": 8}),  # all of the prompt, and one token of the answer
        (tokens, {}),
        (texts, {}),
        (messages, {}),
        (messages, {"assistant_only_loss": True}),
        (chats, {}),
    ],
)
def test_raw_memory_rows_become_the_features_that_sft_makes_of_the_same_rows(
    form, settings, tmp_path
):
    rows = form(tiny_rows("animal", 6))
    base = base_of("causal")
    base.tokenizer.chat_template = TEMPLATE
    method = RecurrentKIF(memory=rows, **ROUNDS)
    trainer = sft(tmp_path, rows, [method], base, max_steps=1, **settings)
    args, loader = trainer.args, trainer.get_train_dataloader()
    ours = features_by_task(rows, args, loader.dataset, base.tokenizer, "here")["memory"]
    dataset = trainer.train_dataset
    theirs = [{key: row[key] for key in ("input_ids", "labels")} for row in dataset]
    assert ours == theirs
    assert {-100} < {label for row in ours for label in row["labels"]} or not (
        trainer.completion_only_loss or args.assistant_only_loss
    )
    trainer.train()
    assert len(method.context.memory) == len(theirs)


def test_shuffling_the_training_rows_does_not_shuffle_memory(tmp_path):
    rows = list(tiny_rows("animal", 6))
    trainer = sft(tmp_path, rows, shuffle_dataset=True)
    memory = features_by_task({"old": rows}, trainer.args, None, tiny_tokenizer("causal"), "here")
    plain = sft(tmp_path, rows).train_dataset
    assert [row["input_ids"] for row in memory["old"]] == plain["input_ids"][:]


def test_rows_that_sft_cannot_prepare_are_told_in_one_line(tmp_path):
    for rows, message in (
        ([{"question": "alpha"}], "cannot prepare"),
        (list(tiny_rows("animal", 2)), "max_length=3"),
    ):
        with pytest.raises(PerdureError, match=message) as caught:
            features_by_task(
                rows, arguments(tmp_path, max_length=3), None, tiny_tokenizer("causal"), "here"
            )
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_in_sft_it_ends_in_the_weights_of_perdures_own_engine(accumulation, tmp_path):
    base, settings = base_of("causal"), {"gradient_accumulation_steps": accumulation}
    rows = features("causal", "colour", 40)
    sft(tmp_path, rows, [kif_callback("causal", **ROUNDS)], base, **settings).train()
    other = base_of("causal")
    perdure_engine(other, tmp_path, ROUNDS, **settings).learn()
    off, far = farthest(trained(base.model), trained(other.model))
    assert far <= 3  # a score at the threshold may change its side
    assert off < 0.01


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_checkpointing": True},
        {"packing": True, "packing_strategy": "wrapped"},
        {"padding_free": True, "max_length": None},
    ],
    ids=str,
)
def test_neutral_keywords_leave_sft_its_weights_and_its_draws_bitwise(settings, tmp_path):
    neutral = {**ROUNDS, **(RecurrentKIF.neutral or {})}
    rows, final_weights = list(tiny_rows("colour", 40)), []
    for callbacks in ([], [RecurrentKIF(memory=list(tiny_rows("animal", 6)), **neutral)]):
        base = base_of("causal")
        sft(tmp_path, rows, callbacks, base, **settings).train()
        final_weights.append(trained(base.model))
    assert same(*final_weights)


def test_rows_without_padding_in_sft_do_not_see_each_other(tmp_path):
    """New and remembered rows of several lengths: the weights are those of padded rows."""
    finals = []
    for settings in ({}, {"padding_free": True, "max_length": None}):
        base = base_of("causal", 0.0)
        rows = lengthened(features("causal", "colour", 40))
        callback = RecurrentKIF(memory=lengthened(features("causal", "animal", 6)), **ROUNDS)
        sft(tmp_path, rows, [callback], base, **settings).train()
        finals.append(trained(base.model))
    off, far = farthest(*finals)
    assert far <= 3  # a score at the threshold may change its side
    assert off < 0.01


def lengthened(rows):
    return [
        {key: [*row[key], *[5] * (i % 7)] for key in ("input_ids", "labels")}
        for i, row in enumerate(rows)
    ]


def test_a_resumed_sft_run_ends_in_the_same_weights(tmp_path):
    rows, memory = list(tiny_rows("colour", 40)), list(tiny_rows("animal", 6))
    saving = {"save_strategy": "steps", "save_steps": 3}

    def made(work, *callbacks):
        base = base_of("causal")
        callbacks = [RecurrentKIF(memory=memory, **ROUNDS), *callbacks]
        return base, sft(tmp_path / work, rows, callbacks, base, **saving)

    base, trainer = made("whole")
    trainer.train()
    with pytest.raises(Stopped):
        made("again", Stop(5))[1].train()
    resumed, trainer = made("again")
    trainer.train(resume_from_checkpoint=True)
    assert same(trained(base.model), trained(resumed.model))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
@pytest.mark.slow
def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)
