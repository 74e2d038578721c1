"""What a chat template writes around an answer is no part of it."""

import pytest

from data.templates import UNMARKED, chat_tokenizer
from perdure.data.chat import frame
from perdure.data.tokens import encode
from perdure.measure.answers import answer_text, special_in, stop_tokens, without_reasoning
from tiny import tiny_tokenizer


pytestmark = pytest.mark.own


ASK = {"role": "user", "content": "the cat ?"}


def row_of(content):
    return {"messages": [ASK, {"role": "assistant", "content": content}]}


def heard(tokenizer, row, ids):
    around = frame(row, tokenizer, "toy")
    return answer_text(ids, around, tokenizer, stop_tokens([around], tokenizer))


@pytest.mark.parametrize("template", UNMARKED)
def test_a_model_that_writes_what_it_learned_is_heard_right(template):
    tokenizer, row = chat_tokenizer(UNMARKED[template]), row_of("red dog")
    learned = encode(row, tokenizer, "causal", 512, 512).completion
    assert heard(tokenizer, row, learned) == "red dog"
    assert heard(tokenizer, row, [*learned, 1, 1]) == "red dog"
    plain = tokenizer("blue", add_special_tokens=False)["input_ids"]
    assert heard(tokenizer, row, plain) == "blue"


def test_the_answer_follows_the_thoughts_where_the_template_knows_of_them():
    generated = {
        "thoughts of the last turn alone": "<think>\nup or down\n</think>\n\nred<|im_end|>\n",
        "thoughts dropped": "up or down</think>red</s>",
        "channels": "<|channel|>analysis<|message|>up<|end|><|start|>assistant<|channel|>final"
        "<|message|>red<|return|>",
    }
    for name, text in generated.items():
        tokenizer = chat_tokenizer(UNMARKED[name])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert heard(tokenizer, row_of("one"), ids) == "red"
    tokenizer = chat_tokenizer(UNMARKED["chatml"])  # which knows of none
    ids = tokenizer("up</think>red", add_special_tokens=False)["input_ids"]
    assert heard(tokenizer, row_of("one"), ids) == "up</think>red"


@pytest.mark.parametrize(
    "turn",
    [
        "[ans]{}[/ans]</s>",
        '"{}"</s>',
        '{{"answer": "{}"}}</s>',
        "<answer>{}</answer><|im_end|>",
        "{}.</s>",
        "{} ### End</s>",
    ],
)
def test_text_that_a_template_writes_behind_an_answer_is_no_part_of_it(turn):
    before, after = turn.replace("{{", "{").replace("}}", "}").split("{}")
    tokenizer = chat_tokenizer(
        "{% for m in messages %}[{{ m.role }}]\n{% if m.role == 'assistant' %}"
        f"{{{{ {before!r} + m.content + {after!r} }}}}"
        "{% else %}{{ m.content }}</s>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    row = row_of("red dog")
    learned = encode(row, tokenizer, "causal", 512, 512).completion
    assert heard(tokenizer, row, learned) == "red dog"


def test_an_answer_without_thoughts_may_hold_the_text_that_ends_thoughts():
    tokenizer = chat_tokenizer(
        "{% for m in messages %}[{{ m.role }}]\n{% if m.reasoning_content %}Thought: "
        "{{ m.reasoning_content }}\nAnswer: {% endif %}{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    )
    for text, answer in (("Answer: red", "Answer: red"), ("Thought: up\nAnswer: red", "red")):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert heard(tokenizer, row_of("one"), ids) == answer


def test_reasoning_that_stands_in_a_right_answer_is_cut_from_it_as_from_what_is_generated():
    contents = {
        "thoughts of the last turn alone": "<think>\nup\n</think>\n\nred dog",
        "thoughts dropped": "<think>up</think>red dog",
    }
    for name, content in contents.items():
        tokenizer, row = chat_tokenizer(UNMARKED[name]), row_of(content)
        learned = encode(row, tokenizer, "causal", 512, 512).completion
        expected = without_reasoning(content, frame(row, tokenizer, "toy"))
        assert heard(tokenizer, row, learned) == expected == "red dog"
    assert without_reasoning("<think>up</think>", frame(row, tokenizer, "toy"))  # and nothing else
    plain = frame(row, chat_tokenizer(UNMARKED["chatml"]), "toy")
    assert without_reasoning("<think>up</think>red", plain) == "<think>up</think>red"
    assert without_reasoning("red", None) == "red"


def test_special_tokens_of_a_right_answer_are_a_part_of_it():
    tokenizer = chat_tokenizer(UNMARKED["chatml"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<call>"]})
    right = ["<call>red"]
    ids = tokenizer("<call>red</s>", add_special_tokens=False)["input_ids"]
    special_ids = special_in(right, tokenizer)
    assert answer_text(ids, None, tokenizer, set(), special_ids) == "<call>red"
    assert answer_text(ids, None, tokenizer, set()) == "red"


def test_the_space_before_a_mark_stays_as_it_was_learned():
    tokenizer = tiny_tokenizer("causal")
    tokenizer.clean_up_tokenization_spaces = True
    assert tokenizer.decode(tokenizer("red .")["input_ids"]) == "red."
    learned = encode({"prompt": "the cat ?", "completion": " red ."}, tokenizer, "causal", 9, 9)
    assert answer_text(learned.completion, None, tokenizer, set()) == "red ."
    kept = tokenizer.convert_tokens_to_ids(["<s>"])
    assert answer_text([*kept, *learned.completion], None, tokenizer, set(), kept) == "<s> red ."
