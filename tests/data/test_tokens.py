import pytest
import torch
from tokenizers import Tokenizer, normalizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import NllbTokenizer, PreTrainedTokenizerFast

from families import llama_like
from perdure.data import tokens as tokens_module
from perdure.data.special import special_tokens
from perdure.data.tokens import (
    Collator,
    completion_text,
    encode,
    features,
    packed_features,
    prompt_text,
    prompts,
)
from perdure.errors import PerdureError
from tiny import KINDS, tiny_rows, tiny_tokenizer


ROW = {"prompt": "question alpha answer :", "completion": " red dog"}
SHORT = {"prompt": "cat", "completion": " red"}
CHAT = {"messages": [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]}
TEMPLATE = (
    "{% for m in messages %}{{ 'question ' if m.role == 'user' else 'answer ' }}"
    "{{ m.content }}{{ ' </s>\n' if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}answer {% endif %}"
)


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


def test_each_kind_of_model_gets_its_own_layout():
    encoded = {kind: encode(ROW, tiny_tokenizer(kind), kind, 64, 8) for kind in KINDS}
    prompt_words = {kind: words(tiny_tokenizer(kind), encoded[kind].prompt) for kind in KINDS}
    prompt = ROW["prompt"].split()
    assert prompt_words["causal"] == prompt
    assert prompt_words["seq2seq"] == [*prompt, "</s>"]
    assert prompt_words["encoder"] == ["[CLS]", *prompt, "[SEP]"]
    for kind in ("causal", "seq2seq"):
        assert words(tiny_tokenizer(kind), encoded[kind].completion) == ["red", "dog", "</s>"]
    assert encoded["encoder"].completion == []


@pytest.mark.parametrize("closes", [False, True])
def test_a_causal_prompt_begins_with_bos_and_never_ends_with_eos(closes):
    tokenizer = llama_like(eos=closes)
    encoded = encode(ROW, tokenizer, "causal", 64, 16)
    assert encoded.prompt == [0, *tokenizer(ROW["prompt"], add_special_tokens=False)["input_ids"]]
    assert encoded.completion[-1] == 1
    text = tokenizer.decode(encoded.prompt[1:] + encoded.completion[:-1])
    assert text == "question alpha answer : red dog"


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ("a :", "red"),
        ("a : ", "red"),
        ("a :", " red"),
        ("a :\n", "red"),
        ('{"label": "', 'positive"}'),
        ("2+2=", "4"),
        ("\u8bf7\u7ffb\u8bd1\uff1a", "\u4f60\u597d"),
    ],
)
def test_nothing_comes_between_prompt_and_completion(prompt, completion):
    tokenizer = llama_like()
    encoded = encode({"prompt": prompt, "completion": completion}, tokenizer, "causal", 64, 32)
    learned = encoded.prompt[1:] + encoded.completion[:-1]
    assert learned == tokenizer(prompt + completion, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(learned) == prompt + completion


def test_a_token_that_spans_the_end_of_the_prompt_is_learned():
    tokenizer = llama_like()
    encoded = encode({"prompt": "a : ", "completion": "red"}, tokenizer, "causal", 64, 16)
    assert encoded.prompt == tokenizer("a :")["input_ids"]
    assert tokenizer.decode(encoded.completion[:-1]) == " red"


@pytest.mark.parametrize(
    ("row", "whole_text"),
    [
        ({"prompt": "<s>a :", "completion": " red"}, "<s>a : red</s>"),
        ({"prompt": "a :", "completion": " red</s>"}, "<s>a : red</s>"),
        ({"prompt": "<s>a :", "completion": " red</s>\n"}, "<s>a : red</s>\n"),
        ({"text": "<s>a : red</s>"}, "<s>a : red</s>"),
        ({"text": "a : red</s> "}, "<s>a : red</s> "),
    ],
)
@pytest.mark.parametrize("closes", [False, True])
def test_a_special_token_that_stands_there_is_not_put_there_again(row, whole_text, closes):
    tokenizer = llama_like(eos=closes)
    encoded = encode(row, tokenizer, "causal", 64, 16)
    ids = encoded.prompt + encoded.completion
    assert tokenizer.decode(ids) == whole_text
    assert (ids.count(0), ids.count(1)) == (1, 1)
    if "prompt" in row:
        prompt_ids, _ = prompts([row], tokenizer, "causal", 64, "toy")
        assert tokenizer.decode(prompt_ids[0]) == "<s>a :"


@pytest.mark.parametrize("kind", ["seq2seq", "encoder"])
def test_nor_around_the_text_of_an_encoder(kind):
    tokenizer = tiny_tokenizer(kind)
    before, after = ("", " </s>") if kind == "seq2seq" else ("[CLS] ", " [SEP]")
    plain = {"prompt": "cat is", "completion": "red"}
    for prompt in (before + "cat is", "cat is" + after, before + "cat is" + after):
        row = {"prompt": prompt, "completion": "red" + after}
        assert encode(row, tokenizer, kind, 64, 16) == encode(plain, tokenizer, kind, 64, 16)
        assert prompts([row], tokenizer, kind, 64, "toy") == prompts(
            [plain], tokenizer, kind, 64, ""
        )


def test_the_loss_is_on_the_completion_only():
    rows = [ROW, {"prompt": "the cat =", "completion": " one"}]
    tokenizer = tiny_tokenizer("causal")
    encoded, truncated = features(rows, tokenizer, "causal", 64, 8, None, "toy train")
    assert truncated == 0
    for row, feature in zip(rows, encoded, strict=True):
        learned = [i for i in feature["labels"] if i != -100]
        assert words(tokenizer, learned) == [*row["completion"].split(), "</s>"]
        assert feature["input_ids"][-len(learned) :] == learned
        assert len(feature["input_ids"]) == len(feature["labels"])


def test_a_row_of_text_is_learned_whole_by_causal_models_alone():
    row = {"text": "the cat is red"}
    encoded, _ = features([row], tiny_tokenizer("causal"), "causal", 5, 2, None, "toy train")
    assert encoded[0]["labels"] == encoded[0]["input_ids"]
    assert len(encoded[0]["labels"]) == 5
    with pytest.raises(PerdureError, match="toy train, row 1: the text is 1 tokens longer"):
        features([row], tiny_tokenizer("causal"), "causal", 4, 2, None, "toy train")
    for kind in ("seq2seq", "encoder"):
        with pytest.raises(PerdureError, match="toy train, row 1: a row of text has no prompt"):
            features([row], tiny_tokenizer(kind), kind, 64, 8, ["red"], "toy train")


def test_messages_go_through_the_chat_template():
    tokenizer = llama_like()
    tokenizer.chat_template = TEMPLATE
    assert prompt_text(CHAT, tokenizer) == "question cat\nanswer "
    assert completion_text(CHAT, tokenizer) == "dog </s>\n"
    encoded = encode(CHAT, tokenizer, "causal", 64, 16)
    assert 0 not in encoded.prompt  # this template writes no <s>, and none is added
    assert encoded.completion.count(1) == 1
    pair = {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}
    assert encode(pair, tokenizer, "causal", 64, 16) == encoded


def test_a_template_without_an_end_token_gets_none():  # as in TRL
    tokenizer = llama_like()
    tokenizer.chat_template = TEMPLATE.replace(" </s>", "")
    assert 1 not in encode(CHAT, tokenizer, "causal", 64, 16).completion


def test_a_chat_template_that_does_not_serve_is_an_error():
    tokenizer = llama_like()
    with pytest.raises(PerdureError, match=r"toy train, row 2 has messages, .* no chat"):
        features([ROW, CHAT], tokenizer, "causal", 64, 16, None, "toy train")
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(PerdureError, match="message 2: this turn cannot be located"):
        encode(CHAT, tokenizer, "causal", 64, 16)
    tokenizer.chat_template = "{{ raise_exception('no system, please') }}"
    with pytest.raises(PerdureError, match=r"refuses the row \(no system, please\)"):
        encode(CHAT, tokenizer, "causal", 64, 16)


def test_encoder_features_carry_the_index_of_the_answer():
    rows = [{"prompt": "a", "completion": " red"}, {"prompt": "b", "completion": "blue"}]
    tokenizer = tiny_tokenizer("encoder")
    encoded, _ = features(rows, tokenizer, "encoder", 8, 8, ["blue", "red"], "toy test")
    assert [feature["labels"] for feature in encoded] == [1, 0]
    with pytest.raises(PerdureError, match="toy test, row 2: 'blue' is not one of the answers"):
        features(rows, tokenizer, "encoder", 8, 8, ["blew", "red"], "toy test")
    with pytest.raises(PerdureError, match="declare options"):
        features(rows, tokenizer, "encoder", 8, 8, None, "toy test")


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_completion_that_does_not_fit_is_an_error_that_names_its_row(kind):
    tokenizer = tiny_tokenizer(kind)
    long = {"prompt": "the cat", "completion": "one two three"}
    with pytest.raises(
        PerdureError, match="toy train, row 2: the completion has 4 tokens, more than"
    ):
        features([ROW, long], tokenizer, kind, 64, 3, None, "toy train")


def test_a_completion_that_leaves_no_room_for_the_prompt_is_an_error():
    with pytest.raises(PerdureError, match="toy train, row 1: max_length: 3 leaves no room"):
        features([ROW], tiny_tokenizer("causal"), "causal", 3, 8, None, "toy train")


def test_a_tokenizer_without_an_end_token_is_an_error():
    tokenizer = tiny_tokenizer("encoder")
    with pytest.raises(PerdureError, match="no end token"):
        encode(ROW, tokenizer, "causal", 64, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_padded_on_the_right_and_other_keys_are_ignored(kind):
    tokenizer = tiny_tokenizer(kind)
    rows = [ROW, SHORT]
    encoded, _ = features(rows, tokenizer, kind, 64, 8, ["red", "red dog"], "toy")
    batch = Collator(tokenizer, kind)([feature | {"task": "toy"} for feature in encoded])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    for i, feature in enumerate(encoded):
        n = len(feature["input_ids"])
        assert batch["input_ids"][i, :n].tolist() == feature["input_ids"]
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (
            batch["input_ids"].shape[1] - n
        )
        assert set(batch["input_ids"][i, n:].tolist()) <= {tokenizer.pad_token_id}
    if kind == "encoder":
        assert batch["labels"].tolist() == [1, 0]
    else:
        assert batch["labels"][1].tolist()[-1] == -100


def test_a_tokenizer_without_a_pad_token_pads_with_its_end():
    tokenizer = llama_like()
    encoded, _ = features([ROW, SHORT], tokenizer, "causal", 64, 16, None, "toy")
    batch = Collator(tokenizer, "causal")(encoded)
    hidden = batch["attention_mask"] == 0
    assert hidden.any()
    assert set(batch["input_ids"][hidden].tolist()) == {1}


def test_many_rows_are_encoded_as_each_alone():
    rows = [*tiny_rows("colour", 20), ROW, SHORT]
    for kind in KINDS:
        tokenizer = tiny_tokenizer(kind)
        labels = sorted({row["completion"].strip() for row in rows})
        together, cut = features(rows, tokenizer, kind, 9, 4, labels, "toy")
        alone = [features([row], tokenizer, kind, 9, 4, labels, "toy") for row in rows]
        assert together == [encoded[0] for encoded, _ in alone]
        assert cut == sum(n for _, n in alone)


def test_no_rows_give_no_features():
    assert features([], tiny_tokenizer("causal"), "causal", 8, 8, None, "toy") == ([], 0)


TALK = [
    {"role": "user", "content": "cat"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "dog"},
    {"role": "assistant", "content": "two"},
]


def learned_of(messages, template=None, **settings):
    tokenizer = llama_like()
    tokenizer.chat_template = template or TEMPLATE
    row = {"messages": messages}
    encoded = features([row], tokenizer, "causal", 99, 99, None, "toy", **settings)[0][0]
    return tokenizer.decode([label for label in encoded["labels"] if label != -100]).split()


def test_all_turns_of_the_assistant_are_learned_or_the_last_or_those_with_a_weight():
    assert learned_of(TALK) == ["one", "</s>", "two", "</s>"]
    assert learned_of(TALK, mask_history=True) == ["two", "</s>"]
    for left_out in ({"weight": 0}, {"train": False}):
        first = [TALK[0], TALK[1] | left_out, *TALK[2:]]
        last = [*TALK[:3], TALK[3] | left_out]
        assert learned_of(first) == ["two", "</s>"]
        assert learned_of(last) == ["one", "</s>"]
        pair = {"prompt": first[:1], "completion": first[1:]}
        tokenizer = llama_like()
        tokenizer.chat_template = TEMPLATE
        encoded = encode(pair, tokenizer, "causal", 99, 99)
        learned_ids = [label for label in encoded.labels if label != -100]
        assert tokenizer.decode(learned_ids).endswith("two </s>\n")
        assert "one" not in tokenizer.decode(learned_ids)
        with pytest.raises(PerdureError, match="toy, row 1: nothing is learned from it"):
            learned_of([TALK[0], TALK[1] | left_out])


def test_a_template_with_a_date_has_the_same_tokens_on_every_day(monkeypatch):
    template = "{{ strftime_now('%d %b %Y, %H:%M') }}\n" + TEMPLATE
    tokenizer = llama_like()
    tokenizer.chat_template = template
    assert prompt_text(CHAT, tokenizer).startswith("26 Jul 2024, 00:00\nquestion cat")


def test_nothing_that_is_learned_is_cut_out_of_several_turns():
    tokenizer = llama_like()
    tokenizer.chat_template = TEMPLATE
    long = [{**turn, "content": turn["content"] + " alpha beta" * 9} for turn in TALK]
    talk = [long[0], TALK[1], long[2], TALK[3]]
    whole, _ = features([{"messages": talk}], tokenizer, "causal", 999, 99, None, "toy")
    length = len(whole[0]["input_ids"])
    for room in (length - 1, length - 20, length - 30):
        encoded, cut = features([{"messages": talk}], tokenizer, "causal", room, 99, None, "toy")
        assert (len(encoded[0]["input_ids"]), cut) == (room, 1)
        learned_ids = [label for label in encoded[0]["labels"] if label != -100]
        assert tokenizer.decode(learned_ids).split() == ["one", "</s>", "two", "</s>"]
    with pytest.raises(PerdureError, match="leaves no room for the prompt"):
        features([{"messages": talk}], tokenizer, "causal", 5, 99, None, "toy")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["prompt", "completion"])
def test_a_text_of_which_nothing_is_left_is_an_error_that_names_its_row(kind, part):
    tokenizer = tiny_tokenizer(kind)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("red", "")  # type: ignore[assignment]
    lost = {**SHORT, part: "red"}
    rows = [{**SHORT, "completion": "dog"}, lost]
    if kind == "encoder" and part == "completion":
        return  # an answer is a label to it, no text
    with pytest.raises(PerdureError, match=r"green train, row 2: .* makes no token of .* 'red'"):
        features(rows, tokenizer, kind, 64, 8, ["dog"], "green train")
    if part == "prompt":
        with pytest.raises(PerdureError, match="makes no token of the prompt"):
            prompts(rows, tokenizer, kind, 64, "green test")


def test_an_answer_in_messages_of_which_nothing_is_left_is_an_error():
    tokenizer = tiny_tokenizer("causal")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("red", "")  # type: ignore[assignment]
    tokenizer.chat_template = TEMPLATE
    lost = {"messages": [CHAT["messages"][0], {"role": "assistant", "content": "red"}]}
    with pytest.raises(PerdureError, match=r"toy, row 2: .* makes no token of the answer 'red'"):
        features([CHAT, lost], tokenizer, "causal", 64, 8, None, "toy")


@pytest.mark.parametrize("kind", KINDS)
def test_packed_features_are_the_features_in_four_bytes_a_token(kind, monkeypatch):
    monkeypatch.setattr(tokens_module, "AT_ONCE", 2)
    rows, labels = [ROW, SHORT, ROW, SHORT, ROW], ["red", "red dog"]
    tokenizer = tiny_tokenizer(kind)
    settings = dict(kind=kind, max_length=9, max_completion_length=8, where="toy")
    plain, cut = features(rows, tokenizer, labels=labels, **settings)
    packed, packed_cut = packed_features(rows, tokenizer, labels=labels, **settings)
    assert packed_cut == cut
    for row, other in zip(plain, packed, strict=True):
        assert {k: v if isinstance(v, int) else list(v) for k, v in other.items()} == row
        assert {v.itemsize for v in other.values() if not isinstance(v, int)} == {4}
    batch, other_batch = (Collator(tokenizer, kind)(some_rows) for some_rows in (plain, packed))
    assert all(torch.equal(batch[name], other_batch[name]) for name in batch)
    long = {**ROW, "completion": " red" * 9}
    with pytest.raises(PerdureError, match="toy, row 5"):
        packed_features([*rows[:4], long], tokenizer, labels=labels, **settings)


def test_the_target_of_a_translation_has_its_own_language():
    vocabulary = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"actdog"])}
    nllb = NllbTokenizer(
        vocab=dict.fromkeys(vocabulary) | vocabulary,
        merges=[],
        src_lang="eng_Latn",
        tgt_lang="fra_Latn",
    )
    row = encode({"prompt": "dog", "completion": "cat"}, nllb, "seq2seq", 64, 8)
    assert nllb.convert_ids_to_tokens(row.prompt)[0] == "eng_Latn"
    expected = nllb(text_target="cat")["input_ids"]
    assert list(row.completion) == expected
    assert nllb.convert_ids_to_tokens(expected)[0] == "fra_Latn"


def test_special_tokens_are_found_if_the_tokenizer_knows_no_letter_a():
    bases = {t: i for i, t in enumerate(["<s>", "</s>", "A", "C", "G", "T"])}
    letters = Tokenizer(BPE(vocab=bases, merges=[]))
    letters.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    assert special_tokens(tokenizer) == ([0], [1])
    row = encode({"prompt": "ACGT", "completion": "GG"}, tokenizer, "seq2seq", 64, 8)
    assert words(tokenizer, row.prompt) == words(tokenizer, tokenizer("ACGT")["input_ids"])


def test_an_end_token_within_a_target_is_not_its_end():
    tokenizer = tiny_tokenizer("seq2seq")
    end = tokenizer.eos_token
    row = encode({"prompt": "cat", "completion": f"red {end} dog"}, tokenizer, "seq2seq", 64, 8)
    assert row.completion[-1] == tokenizer.eos_token_id
