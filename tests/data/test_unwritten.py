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
