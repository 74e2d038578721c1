"""Self-replay: which rows the model writes, which of them are rehearsed, and when."""

import pytest
import torch

from perdure.config import Config
from perdure.data.tokens import IGNORED
from perdure.errors import PerdureError
from perdure.methods import make
from perdure.methods.shared.written_rows import Writer, is_new, is_varied, stacked, unstacked
from perdure.seeds import derive, forked
from perdure.train.memory import Memory
from perdure.train.passes import Passes
from train.engine import engine, learned, same, tiny_base, weights


pytestmark = pytest.mark.own

BOS, EOS, SPECIAL = 1, 2, {0, 1, 2, 3}
TEMPLATE = (
    "{% for m in messages %}{{ 'question ' if m.role == 'user' else 'answer ' }}"
    "{{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}answer {% endif %}"
)


def chat_base():
    base = tiny_base("causal")
    base.tokenizer.chat_template = TEMPLATE
    return base


def begun(base, spec, work, memory=6, **settings):
    """The engine before its first step, when the rows are written; the method is its first."""
    trainer = engine(base, spec, work, memory=memory, **settings)
    trainer.training_step = lambda *args, **kwargs: torch.tensor(0.0)
    return trainer


def written(base, work, **keywords):
    """The rows that the method rehearses."""
    trainer = begun(base, {"self_replay": keywords}, work)
    rows = []
    trainer.callback_handler.callbacks[0].on_epoch_begin = lambda *args, **named: rows.extend(
        trainer.methods[0].written
    )
    trainer.learn()
    return rows


@torch.no_grad()
def sampled(base, count: int, tokens: int, temperature: float, seed: int) -> list[list[int]]:
    """Texts drawn token by token from softmax(logits / temperature), without a cache."""
    model = base.model.eval()
    ids = torch.full((count, 1), BOS)
    ended = torch.zeros(count, dtype=torch.bool)
    with forked(seed):
        for _ in range(tokens):
            logits = model(input_ids=ids).logits[:, -1].float()
            logits[:, sorted(SPECIAL - {EOS})] = -torch.inf
            drawn = torch.multinomial((logits / temperature).softmax(-1), 1).squeeze(1)
            drawn = torch.where(ended, 0, drawn)  # padding
            ids, ended = torch.cat([ids, drawn[:, None]], 1), ended | (drawn == EOS)
            if ended.all():
                break
    texts = [[i for i in row[1:] if i] for row in ids.tolist()]
    return [text for text in texts if text != [EOS]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_texts_are_drawn_from_the_model_and_all_of_their_tokens_are_learned(temperature, tmp_path):
    keywords = {"rows": 12, "temperature": temperature, "max_new_tokens": 9}
    rows = written(tiny_base("causal"), tmp_path, **keywords)
    seed = derive(3, "write")  # 3 is the context's seed
    expected = sampled(tiny_base("causal"), 12, 9, temperature, seed)
    expected = [text for text in expected if is_varied(text)]
    assert len(expected) >= 8
    assert [row["input_ids"] for row in rows] == [[BOS, *text] for text in expected]
    assert [row["labels"] for row in rows] == [[IGNORED, *text] for text in expected]


def test_a_chat_base_writes_a_message_and_an_answer_that_is_learned(tmp_path):
    base = chat_base()
    question, answer = base.tokenizer.convert_tokens_to_ids(["question", "answer"])
    rows = written(base, tmp_path, rows=20, max_new_tokens=40)
    assert len(rows) >= 8
    messages = set()
    for row in rows:
        start = row["labels"].count(IGNORED)
        prompt, text = row["input_ids"][:start], row["input_ids"][start:]
        assert row["labels"][start:] == text
        assert prompt[0] == question
        assert prompt[-2:] == [EOS, answer]
        assert not set(prompt[1:-2]) & SPECIAL
        assert 1 <= len(text) <= 40
        messages.add(tuple(prompt[1:-2]))
    assert len(messages) == len(rows)


def test_the_rows_are_the_same_for_the_same_seed_only(tmp_path):
    first = written(tiny_base("causal"), tmp_path / "a", rows=4)
    assert first == written(tiny_base("causal"), tmp_path / "b", rows=4)
    base, texts = tiny_base("causal"), []
    for seed in (1, 2):
        with forked(seed):
            texts.append(Writer(base, Passes(), 8, 1.0).write(4))
    assert texts[0] != texts[1]


def test_every_batch_has_the_rows_of_the_ratio(tmp_path):
    base = tiny_base("causal")
    trainer = begun(base, {"self_replay": {"rows": 16, "ratio": 0.5}}, tmp_path)
    collate, batches, rows = trainer.rehearsal.collator, [], []

    def noted(features):
        batches.append(features[4:])
        rows[:] = trainer.methods[0].written
        return collate(features)

    trainer.rehearsal.collator = noted  # type: ignore[assignment]
    trainer.learn()
    memory = Memory({"(written)": rows}, derive(3, "draws"))
    assert batches == [memory.draw(2 * i, 2) for i in range(10)]


def test_the_base_writes_with_its_adapter_disabled(tmp_path):
    base = tiny_base("causal")
    trainable = weights(base).keys()
    rows = written(base, tmp_path / "a", rows=6, source="base")
    assert weights(base).keys() == trainable
    plain = tiny_base("causal")
    for name, parameter in plain.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    assert rows == written(plain, tmp_path / "b", rows=6)
    assert rows != written(tiny_base("causal"), tmp_path / "c", rows=6)


def test_a_resumed_run_does_not_write_again(tmp_path, monkeypatch):
    """That it ends in the same bytes is shown for every method in test_methods.py."""
    spec = {"self_replay": {"rows": 4}}
    trainer = engine(tiny_base("causal"), spec, tmp_path, checkpoint_every=5)
    trainer.learn()
    monkeypatch.setattr(Writer, "write", lambda *args: pytest.fail("it wrote again"))
    checkpoint = tmp_path / "checkpoint-5"
    again = engine(tiny_base("causal"), spec, tmp_path, checkpoint_every=5, resume=checkpoint)
    again.learn()
    assert same(weights(trainer.base), weights(again.base))
    assert again.methods[0].state_dict() == {}  # nothing of it is stored with the stage


@pytest.mark.parametrize("whole", [False, True])
def test_a_text_counts_as_one_forward_pass(whole):
    base, passes = tiny_base("causal", whole=whole), Passes()
    base.padding  # noqa: B018 (its trial is no part of the cost)
    with passes.through(base.model), forked(0):
        Writer(base, passes, max_new_tokens=6, temperature=1.0).write(5)
    assert (passes.forward, passes.backward) == (5, 0)


def test_without_rows_the_run_is_the_sequential_one(tmp_path):
    plain, _ = learned("causal", "sequential", tmp_path / "a", rows=8)
    none, _ = learned("causal", {"self_replay": {"rows": 0}}, tmp_path / "b", rows=8)
    assert same(plain, none)


def test_if_nothing_can_be_rehearsed_there_is_a_warning_and_plain_training(tmp_path):
    plain, _ = learned("causal", "sequential", tmp_path / "a", dropout=0.0, rows=8)
    base = chat_base()
    spec = {"self_replay": {"rows": 3, "max_new_tokens": 1}}  # too short for a message and its end
    trainer = engine(base, spec, tmp_path / "b", rows=8, memory=6)
    with pytest.warns(UserWarning, match="none of the 3 rows that the model wrote") as warned:
        trainer.learn()
    assert len([w for w in warned if "self_replay" in str(w.message)]) == 1
    assert same(plain, weights(base))


def test_it_works_with_kl_base_and_replay(tmp_path):
    spec = ["replay", "kl_base", {"self_replay": {"rows": 4}}]
    all_three, trainer = learned("causal", spec, tmp_path / "a", rows=8)
    assert [m.name for m in trainer.methods] == ["replay", "lwf", "self_replay"]
    without, _ = learned("causal", ["replay", "kl_base"], tmp_path / "b", rows=8)
    assert not same(all_three, without)


@pytest.mark.parametrize(
    ("ids", "varied"),
    [
        ([5], True),
        ([5, 5, 5, 5], True),  # two triples, one of them distinct
        ([5, 5, 5, 5, 5], False),
        ([5, 6] * 20, False),
        (list(range(40)), True),
        ([*range(10), *range(10)], True),
    ],
)
def test_a_text_that_repeats_itself_is_left_out(ids, varied):
    assert is_varied(ids) == varied


def test_blank_texts_and_texts_that_were_seen_are_left_out():
    seen: set[str] = set()
    texts = ["One two", " \n", "", "one  TWO ", "one", "One two"]
    assert [text for text in texts if is_new(text, seen)] == ["One two", "one"]


def test_rows_survive_storing():
    rows = [
        {"input_ids": [1, 5, 6], "labels": [IGNORED, 5, 6]},
        {"input_ids": [1, 4, 9, 2], "labels": [IGNORED, IGNORED, 9, 2]},
    ]
    assert unstacked(stacked(rows)) == rows
    assert unstacked(stacked([])) == []


@pytest.mark.parametrize(
    "keywords", [{"rows": -1}, {"ratio": -0.1}, {"temperature": 0.0}, {"max_new_tokens": 0}]
)
def test_bad_keywords_are_refused(keywords):
    with pytest.raises(PerdureError, match=r"self_replay: .*got"):
        make({"self_replay": keywords})


@pytest.mark.parametrize("kind", ["seq2seq", "encoder"])
def test_bases_that_cannot_write_are_refused(kind):
    with pytest.raises(PerdureError, match=f"self_replay: works only .* of kind {kind}"):
        make("self_replay")[0].check(Config(), kind)


def test_the_base_cannot_write_without_an_adapter_to_disable():
    with pytest.raises(PerdureError, match=r"source base is .* source previous"):
        make({"self_replay": {"source": "base"}})[0].check(Config(adapter=None), "causal")
