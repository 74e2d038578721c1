"""What a model makes of probes, against the plain model row by row."""

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from perdure.data.probes import read_probes
from perdure.errors import PerdureError
from perdure.measure.probes import mean_loss
from perdure.measure.recollection import halves, knows_answers, recollect
from perdure.models.base import Base
from perdure.models.classifier import Classifier
from tiny import WORDS, tiny_model, tiny_rows, tiny_tokenizer


pytestmark = pytest.mark.own


def base_of(kind: str, bos: bool = False) -> Base:
    """A tiny model with weights large enough that its answers differ from row to row."""
    model, tokenizer = tiny_model(kind), tiny_tokenizer(kind)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    if kind == "encoder":
        model = Classifier(model, 32)
        labels = ["red", "green", "blue"]
        model.set_head(torch.randn(3, 32, generator=generator), torch.zeros(3), labels)
    if bos:  # as Llama's own: written before every text
        from tokenizers import processors

        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
        )
    return Base(f"tiny {kind}", kind, model.eval(), tokenizer)  # type: ignore[arg-type]


def texts(n: int = 12) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    chosen = [
        torch.randint(len(WORDS), (2 + 3 * i,), generator=generator).tolist() for i in range(n)
    ]
    return [{"text": " ".join(WORDS[w] for w in words)} for words in chosen]


def asked(base: Base, rows, length: int = 64, size: int = 4):
    return recollect(base, read_probes(rows)[0], length, 8, size, "rows.jsonl")


@torch.no_grad()
def peft_loss(base: Base, rows: list[dict], most: int) -> float:
    """PEFT's measure: every token of a text but the first, all weighing the same."""
    losses: list[float] = []
    for row in rows:
        ids = torch.tensor([base.tokenizer(row["text"])["input_ids"][:most]])
        logits = base.model(input_ids=ids).logits[0]
        losses += cross_entropy(logits[:-1], ids[0, 1:], reduction="none").tolist()
    return sum(losses) / len(losses)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("most", [64, 9])
def test_the_loss_of_texts_is_that_of_peft_which_cuts_them_at_their_end(bos, most):
    base, rows = base_of("causal", bos), texts()
    recollection = asked(base, rows, most)
    log_p, tokens = zip(*recollection.rows, strict=True)
    assert mean_loss(log_p, tokens) == pytest.approx(peft_loss(base, rows, most), abs=1e-5)
    lengths = [len(row["text"].split()) + bos for row in rows]
    assert list(tokens) == [min(length, most) - 1 for length in lengths]
    assert recollection.truncated == sum(length > most for length in lengths)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_of_a_prompt_the_completion_counts_with_its_end(kind):
    base, rows = base_of(kind), list(tiny_rows("colour", 6))
    recollection = asked(base, rows)
    for row, (log_p, tokens) in zip(rows, recollection.rows, strict=True):
        prompt = torch.tensor([base.tokenizer(row["prompt"])["input_ids"]])
        end = base.tokenizer.eos_token_id
        answer = torch.tensor(
            [[*base.tokenizer.convert_tokens_to_ids(row["completion"].split()), end]]
        )
        if kind == "causal":
            logits = base.model(input_ids=torch.cat([prompt, answer], 1)).logits[0, -3:-1]
        else:
            logits = base.model(input_ids=prompt, labels=answer).logits[0]
        expected = log_softmax(logits, -1).gather(1, answer[0].unsqueeze(1)).sum()
        assert log_p == pytest.approx(float(expected), abs=1e-4)
        assert tokens == 2


@torch.no_grad()
def test_of_an_encoder_the_label_counts_among_all_of_the_head():
    base, rows = base_of("encoder"), [{**row, "foil": "blue"} for row in tiny_rows("colour", 8)]
    recollection = asked(base, rows)
    for row, likelihood, foil, right in zip(
        rows, recollection.rows, recollection.foils, recollection.recalled, strict=True
    ):
        batch = base.tokenizer(row["prompt"], return_tensors="pt")
        logits = base.model(batch["input_ids"], batch["attention_mask"]).logits[0]
        expected = log_softmax(logits, -1)
        place = base.labels.index(row["completion"])
        assert likelihood == (pytest.approx(float(expected[place]), abs=1e-5), 1)
        assert foil.log_p == pytest.approx(float(expected[2]), abs=1e-5)
        assert right == float(int(expected.argmax()) == place)
    every = [{**row, "references": list(base.labels)} for row in rows]
    assert asked(base, every).recalled == [1.0] * len(rows)


@pytest.mark.parametrize("kind", ["causal", "seq2seq", "encoder"])
def test_an_identical_foil_ties_to_the_bit_whatever_the_batch(kind):
    rows = [{**row, "foil": row["completion"]} for row in tiny_rows("colour", 7)]
    rows[0] = {"prompt": "question the alpha", "completion": "red", "foil": "red"}
    for size in (1, 3, 32):
        recollection = asked(base_of(kind), rows, size=size)
        assert [likelihood.log_p for likelihood in recollection.rows] == [
            likelihood.log_p for likelihood in recollection.foils if likelihood
        ]


def test_a_row_without_a_foil_has_none():
    rows = [{"text": "red green", "foil": "blue up"}, {"text": "one two"}]
    recollection = asked(base_of("causal"), rows)
    assert [likelihood is None for likelihood in recollection.foils] == [False, True]
    assert recollection.foils[0] != recollection.rows[0]


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_what_the_model_writes_itself_is_recalled(kind, monkeypatch):
    base, rows = base_of(kind), list(tiny_rows("colour", 4))
    ids = base.tokenizer("blue cat", return_tensors="pt", add_special_tokens=False)["input_ids"]

    def writes(input_ids, generation_config, **settings):
        assert generation_config.max_new_tokens >= ids.shape[1] + 1  # the end token, too
        start = input_ids if kind == "causal" else input_ids[:, :1]  # the decoder's first
        return torch.cat([start, ids.expand(len(input_ids), -1)], 1)

    monkeypatch.setattr(base.model, "generate", writes)
    monkeypatch.setattr("perdure.measure.predict.can_leave", lambda base: False)
    answers = ("blue cat", "Blue  CAT", "blue", "blue cat .")
    recollection = asked(
        base, [{**row, "completion": a} for row, a in zip(rows, answers, strict=True)]
    )
    assert recollection.recalled == [1.0, 1.0, 0.0, 0.0]
    also = [{**rows[0], "references": ["red", "blue cat"]}, rows[1]]
    assert asked(base, also).recalled == [1.0, 0.0]


def test_a_text_is_recalled_if_its_second_half_follows_on_the_first():
    base = base_of("causal")

    def goes_on(input_ids, generation_config, **settings):
        continuation = base.tokenizer("blue cat </s>", return_tensors="pt")["input_ids"]
        assert generation_config.max_new_tokens >= continuation.shape[1]
        return torch.cat([input_ids, continuation.expand(len(input_ids), -1)], 1)

    base.model.generate = goes_on  # type: ignore[method-assign]
    rows = [
        "red green blue cat",
        "red green cat blue",
        "red",
        "one two three four five six blue cat",
    ]
    probes, _ = read_probes([{"text": f"{text} ." if text == "red" else text} for text in rows])
    assert recollect(base, probes, 6, 8, 4, "rows").recalled == [1.0, 0.0, 0.0, None]


def test_a_text_is_halved_between_words():
    assert halves("one two three four") == {"prompt": "one two", "completion": " three four"}
    assert halves("  a   longword ") == {"prompt": "  a", "completion": "   longword "}
    assert halves("word") is halves(" word ") is None


def test_an_encoder_does_not_know_every_answer():
    base = base_of("encoder")
    row = {"prompt": "red", "completion": "green"}
    for foil, known in (({}, True), ({"foil": "blue"}, True), ({"foil": "bird"}, False)):
        assert knows_answers(base, read_probes([{**row, **foil}])[0]) == known
    assert not knows_answers(base, read_probes([{**row, "completion": "bird"}])[0])
    assert knows_answers(base_of("causal"), read_probes([{**row, "completion": "bird"}])[0])


@pytest.mark.parametrize(
    ("kind", "row", "error_line"),
    [
        ("causal", {"text": "red"}, "rows.jsonl, row 1: the text is a single token"),
        ("causal", {"text": "red red", "foil": "red"}, "with foils, row 1: the text is a single"),
        ("seq2seq", {"text": "red green"}, "row 1: only decoder-only models take rows of text"),
        ("encoder", {"text": "red green"}, "row 1: only decoder-only models take rows of text"),
        ("encoder", {"prompt": "up", "completion": "gren"}, "row 1: 'gren' is .*mean 'green'"),
        (
            "encoder",
            {"prompt": "up", "completion": "green", "foil": "bleu"},
            "with foils, row 1: 'bleu' is .*mean 'blue'",
        ),
        (
            "causal",
            {"prompt": "up", "completion": "red", "foil": "one " * 9},
            "with foils, row 1: the completion has 10 tokens",
        ),
    ],
)
def test_a_row_that_the_model_cannot_take_is_named(kind, row, error_line):
    with pytest.raises(PerdureError, match=error_line):
        asked(base_of(kind), [row])
