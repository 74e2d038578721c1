"""What the tokens of rows say that is probably not meant."""

import pytest

from data.templates import chat_tokenizer
from families import llama_like
from perdure.data.remarks import remarks
from perdure.data.tokens import encode_all
from tiny import tiny_rows, tiny_tokenizer


pytestmark = pytest.mark.own


def remarked(rows, tokenizer, kind):
    encoded = encode_all(rows, tokenizer, kind, 128, 64, "toy train")
    return remarks(rows, encoded, tokenizer, kind, "toy train")


def test_nothing_is_remarked_of_rows_that_fit():
    for kind in ("causal", "seq2seq"):
        assert remarked(tiny_rows("colour"), tiny_tokenizer(kind), kind) == []


def test_an_answer_with_an_unknown_token_is_remarked():
    rows = [*tiny_rows("colour", 3), {"prompt": "the cat : ", "completion": "purple"}]
    for kind in ("causal", "seq2seq"):
        line, *further_lines = remarked(rows, tiny_tokenizer(kind), kind)
        assert line.startswith("toy train: 1 of 4 rows (first: row 4) have unknown tokens (<unk>)")
        assert further_lines == []
    rows = [{"prompt": "no such words here : ", "completion": "red"}]
    (line,) = remarked(rows, tiny_tokenizer("encoder"), "encoder")
    assert "in more than half of a prompt" in line


def test_a_token_that_spans_the_end_of_the_prompt_is_remarked():
    rows = [{"prompt": "a : ", "completion": "red"}]
    (line,) = remarked(rows, llama_like(), "causal")
    assert "in 1 of 1 rows (first: row 1) a token spans the end of the prompt" in line


def test_a_template_that_ends_no_answer_is_remarked():
    tokenizer = llama_like()
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    messages = [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog"}]
    (line,) = remarked([{"messages": messages}], tokenizer, "causal")
    assert "toy train, row 1: the chat template writes no end token" in line


def test_a_token_that_spans_the_end_of_a_generation_prompt_is_remarked():
    template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}"
    )
    user_turn = {"role": "user", "content": "the cat"}
    row = {"messages": [user_turn, {"role": "assistant", "content": "red"}]}
    lines = remarked([row], chat_tokenizer(template), "causal")
    assert any("a token spans the end of the prompt" in line for line in lines)


def test_a_text_that_the_template_writes_before_its_marks_is_remarked():
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}answer red {% generation %}"
        "{{ m.content }}</s>{% endgeneration %}{% else %}question {{ m.content }} {% endif %}"
        "{% endfor %}{% if add_generation_prompt %}answer {% endif %}"
    )
    chat = [{"role": "user", "content": "cat ?"}, {"role": "assistant", "content": "blue"}]
    (line,) = remarked([{"messages": chat}], chat_tokenizer(template), "causal")
    assert "the chat template's generation prompt does not fit the answer" in line
    inside = template.replace("answer red {% generation %}", "answer {% generation %}red ")
    assert remarked([{"messages": chat}], chat_tokenizer(inside), "causal") == []
