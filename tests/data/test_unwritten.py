"""What a chat template does not write is told, or refused where nothing would be learned."""

import pytest

from data.templates import chat_tokenizer
from perdure.data.unwritten import unwritten
from perdure.errors import PerdureError


pytestmark = pytest.mark.own


PLAIN = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}</s>\n{% endfor %}"
TOOLS = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}[{{ m.role }}]\n"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}</s>\n{% endfor %}"
)
PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.parts or [] %}{{ p }}{% endfor %}</s>\n"
    "{% endfor %}"
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
ASK = {"role": "user", "content": "the cat ?"}


def row_of(tools=None, **answer):
    row = {"messages": [ASK, {"role": "assistant", **answer}]}
    return row | ({"tools": tools} if tools else {})


def test_each_key_that_is_not_written_has_a_line():
    rows = [
        row_of(content="red"),
        row_of(content="red", reasoning_content="a thought", tools=[TOOL]),
        row_of(content="red", tool_calls=[CALL], weight=1),
    ]
    lines = unwritten(rows, chat_tokenizer(PLAIN), "toy train")
    assert [line.split(" write ")[1].split(",")[0] for line in lines] == [
        "reasoning_content (1 of 3 rows",
        "tool_calls (1 of 3 rows",
        "tools (1 of 3 rows",
    ]
    assert unwritten(rows, chat_tokenizer(TOOLS), "toy train") == []


def test_a_turn_of_calls_alone_is_not_learned_as_an_empty_answer():
    rows = [row_of(content="red"), row_of(tool_calls=[CALL])]
    with pytest.raises(PerdureError, match=r"toy train, row 2: .* does not write tool_calls"):
        unwritten(rows, chat_tokenizer(PLAIN.replace("m.content", "m.content or ''")), "toy train")
    assert unwritten(rows, chat_tokenizer(TOOLS), "toy train") == []


def test_a_template_that_writes_no_text_is_refused():
    with pytest.raises(PerdureError, match="does not write the messages' text"):
        unwritten([row_of(content="red")], chat_tokenizer(PARTS), "toy train")


def test_a_role_whose_turns_are_not_written_has_a_line():
    two_roles = PLAIN.replace(
        "{% for m in messages %}", "{% for m in messages if m.role in KNOWN %}"
    )
    template = two_roles.replace("KNOWN", "['user', 'assistant']")
    rows = [
        row_of(content="red"),
        {"messages": [{"role": "system", "content": "a"}, *row_of(content="red")["messages"]]},
        {"messages": [*row_of(content="red")["messages"], {"role": "tool", "content": "b"}]},
    ]
    lines = unwritten(rows, chat_tokenizer(template), "toy train")
    assert [line.split(" does not write the ")[1].split(",")[0] for line in lines] == [
        "turns of the role system (1 of 1 rows that have them and were tried",
        "turns of the role tool (1 of 1 rows that have them and were tried",
    ]
    assert unwritten(rows, chat_tokenizer(PLAIN), "toy train") == []


def test_rows_that_lose_a_key_are_told_also_if_others_keep_it():
    last_only = TOOLS.replace("m.reasoning_content %}(", "loop.last and m.reasoning_content %}(")
    kept = row_of(content="red", reasoning_content="a thought")
    lost = {"messages": [*kept["messages"], ASK, {"role": "assistant", "content": "blue"}]}
    (line,) = unwritten([kept, *[lost] * 99], chat_tokenizer(last_only), "toy train")
    assert "does not write reasoning_content in 19 of 20 rows that have it" in line
    assert "(first: row 6)" in line
    assert unwritten([kept] * 30, chat_tokenizer(last_only), "toy train") == []
