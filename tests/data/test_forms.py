"""Records as rows: what is used, what is refused with the words to write, what is left out."""

import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset
from hub_folder import write_dataset

from perdure.calls import checked
from perdure.data.forms import as_row, mapping
from perdure.data.messages import learned
from perdure.data.opening import file_split
from perdure.data.rows import answer, answered, hash_rows, read, read_rows, references, write_rows
from perdure.errors import PerdureError


pytestmark = pytest.mark.own


USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "Be kind."}
CHAT = [USER, ASSISTANT]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"default": None}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
BOTH = {"prompt": "a", "completion": "c"}
CALLING = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "", "name": "weather", "tool_call_id": "a1"},
    {"role": "assistant", "content": "rain", "reasoning_content": "It said so.", "weight": 1},
]


def refused(record):
    with pytest.raises(PerdureError) as error:
        as_row(record, "a.jsonl, row 1")
    assert str(error.value).startswith("a.jsonl, row 1: ")
    assert "\n" not in str(error.value)
    return str(error.value)


SAME = [
    {"prompt": "a", "completion": "b"},
    {"prompt": "a", "completion": "b", "references": ["c", "d"]},
    {"text": "a"},
    {"messages": CALLING, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": False}},
    {"messages": [SYSTEM, *CHAT], "references": ["hey"]},
    {"prompt": [USER], "completion": [ASSISTANT], "tools": [TOOL]},
    {"messages": [USER, ASSISTANT | {"thinking": "hm", "train": False}, USER, ASSISTANT]},
]


@pytest.mark.parametrize("row", SAME)
def test_a_row_stays_as_it_is(row):
    assert as_row(row, "r") == row
    assert as_row(json.loads(json.dumps(as_row(row, "r"))), "r") == row


def test_the_hash_of_a_plain_row_is_what_it_was():
    rows = [{"prompt": "a", "completion": "b"}, {"messages": CHAT}, {"text": "t"}]
    sha256 = hash_rows(as_row(row, "r") for row in rows)
    assert sha256 == "b85a3cbd082fe52052e9b4f912522abed3904f8ba65daec999918bc98adf318d"


@pytest.mark.parametrize(
    ("record", "row"),
    [
        # text beside a label in words is a row of classification
        ({"text": "a fine film", "label": "good"}, {"prompt": "a fine film", "completion": "good"}),
        # a text that is the row written out is left out
        (
            {"instruction": "Add.", "input": "1 2", "output": "3", "text": "# Add.\n1 2\n-> 3"},
            {"prompt": "Add.\n1 2", "completion": "3"},
        ),
        ({"prompt": "a", "completion": "b", "text": "ab"}, {"prompt": "a", "completion": "b"}),
        ({"messages": CHAT, "text": "<hi><hello>"}, {"messages": CHAT}),
        # a prompt that the messages repeat
        ({"prompt": "hi", "prompt_id": "1", "messages": CHAT}, {"messages": CHAT}),
        ({"prompt": [USER], "completion": "hello", "messages": CHAT}, {"messages": CHAT}),
        # several right answers
        (
            {"prompt": "a", "completion": ["b", "c", "b"]},
            {"prompt": "a", "completion": "b", "references": ["c"]},
        ),
        ({"instruction": "a", "output": ["b"]}, {"prompt": "a", "completion": "b"}),
        ({"prompt": "a", "completion": "b", "references": "b"}, {"prompt": "a", "completion": "b"}),
        (
            {"prompt": "a", "completion": "b", "references": '["c"]'},
            {"prompt": "a", "completion": "b", "references": ["c"]},
        ),
        (
            {"prompt": [USER], "completion": ["hello", "hey"]},
            {"prompt": [USER], "completion": [ASSISTANT], "references": ["hey"]},
        ),
        # what stands before the question
        (
            {"instruction": "hi", "output": "hello", "system": "Be kind.", "history": [["a", "b"]]},
            {
                "prompt": [
                    SYSTEM,
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "b"},
                    USER,
                ],
                "completion": [ASSISTANT],
            },
        ),
        (
            {"prompt": "hi", "completion": "hello", "system_prompt": "Be kind.", "history": []},
            {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
        ),
        (
            {"instruction": "hi", "output": "hello", "system": "", "history": "[]"},
            {"prompt": "hi", "completion": "hello"},
        ),
        ({"messages": CHAT, "system": "Be kind."}, {"messages": [SYSTEM, *CHAT]}),
        ({"messages": [SYSTEM, *CHAT], "system": "Be kind."}, {"messages": [SYSTEM, *CHAT]}),
        # tools as JSON text, content in parts, null where a key is absent
        ({"messages": CHAT, "tools": json.dumps([TOOL])}, {"messages": CHAT, "tools": [TOOL]}),
        ({"messages": CHAT, "tools": "[]"}, {"messages": CHAT}),
        ({"messages": json.dumps(CHAT)}, {"messages": CHAT}),
        (
            {"messages": [USER | {"content": [{"type": "text", "text": "h"}, "i"]}, ASSISTANT]},
            {"messages": CHAT},
        ),
        (
            {"messages": [USER, ASSISTANT | {"tool_calls": [], "reasoning_content": None}]},
            {"messages": CHAT},
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]},
            {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
            {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        ),
        # ShareGPT and its kin
        ({"conversations": CHAT}, {"messages": CHAT}),
        ({"conversation": CHAT}, {"messages": CHAT}),
        ({"dialog": CHAT}, {"messages": CHAT}),
        (
            {
                "conversations": [
                    {"from": "Human", "value": "hi"},
                    {"from": "bot", "value": "hello"},
                ],
                "system": "Be kind.",
            },
            {"messages": [SYSTEM, *CHAT]},
        ),
        (
            {
                "conversations": [
                    {"from": "user", "value": "hi"},
                    {"from": "function_call", "value": json.dumps(CALL["function"])},
                    {"from": "observation", "value": "5 C"},
                    {"from": "gpt", "value": "hello", "weight": 1},
                ],
                "tools": json.dumps([TOOL]),
            },
            {
                "messages": [
                    USER,
                    {"role": "assistant", "content": "", "tool_calls": [CALL]},
                    {"role": "tool", "content": "5 C"},
                    ASSISTANT | {"weight": 1},
                ],
                "tools": [TOOL],
            },
        ),
        ({"messages": [{"role": "human", "content": "hi"}, ASSISTANT]}, {"messages": CHAT}),
        # what other tools call train
        (
            {
                "messages": [
                    USER | {"loss": False},
                    ASSISTANT | {"training": False},
                    USER,
                    ASSISTANT | {"loss": True},
                ]
            },
            {
                "messages": [
                    USER | {"train": False},
                    ASSISTANT | {"train": False},
                    USER,
                    ASSISTANT | {"train": True},
                ]
            },
        ),
        ({"messages": CHAT, "functions": [], "output": "hello"}, {"messages": CHAT}),
        # columns that the row holds already
        ({"prompt": "Q: a\nb", "context": "A b", "completion": "c"}, BOTH | {"prompt": "Q: a\nb"}),
        ({"text": "a", "prompt": "a b", "completion": "c"}, BOTH | {"prompt": "a b"}),
        (
            {"instruction": "a", "input": "b", "output": "c", "prompt": "Below: a. With b:"},
            BOTH | {"prompt": "a\nb"},
        ),
        (
            {
                "messages": [USER, ASSISTANT, *CHAT],
                "prompt": [USER, ASSISTANT],
                "response": "hello",
            },
            {"messages": [USER, ASSISTANT, *CHAT]},
        ),
        # columns that are no part of a row
        ({**BOTH, "input": "", "title": "t", "answer": "d", "label": 1, "weight": 1.0}, BOTH),
        ({**BOTH, "reasoning": "on", "thinking": False, "category": "d", "train": True}, BOTH),
        (
            {"messages": CHAT, "category": "d", "label": "d", "score": 3, "topic": "d"},
            {"messages": CHAT},
        ),
        ({"text": "a", "title": "b", "score": 1, "loss": 2.5, "lang": "en"}, {"text": "a"}),
        ({"text": "a", "category": "", "topics": [], "topic": float("nan")}, {"text": "a"}),
        (
            {"text": "a", "label": "good", "label_id": 1, "topic": "b"},
            {"prompt": "a", "completion": "good"},
        ),
    ],
)
def test_what_a_record_says_is_in_its_row(record, row):
    assert as_row(record, "r") == row
    assert as_row(row, "r") == row


@pytest.mark.parametrize(
    ("record", "error_line"),
    [
        # a label without a name, and other columns that are the answer
        ({"text": "a", "label": 1}, 'prompt: "{text}", completion: "{label}", labels: [NAME OF 0'),
        ({"text": "a", "label": "1"}, "labels: [NAME OF 0"),
        ({"text": "a", "label": True}, 'completion: "{label}" next to path'),
        ({"text": "a", "label": 1, "label_text": "good"}, 'completion: "{label_text}" next to'),
        ({"text": "a", "sentiment": "good"}, 'completion: "{sentiment}"'),
        ({"text": "a", "summary": "b"}, "remove it to learn the text"),
        ({"sentence": "a", "label": 0}, 'prompt: "{sentence}", completion: "{label}", labels'),
        ({"question": "a", "answer": "b"}, 'prompt: "{question}", completion: "{answer}" next to'),
        ({"query": "a", "response": "b"}, 'prompt: "{query}", completion: "{response}"'),
        (
            {"idx": 3, "premise": "a", "hypothesis": "b", "label": 0},
            'prompt: "{premise}\\n{hypothesis}", completion: "{label}", labels: [',
        ),
        ({"content": "a", "label": "b"}, 'prompt: "{content}", completion: "{label}"'),
        ({"input": "a", "output": "b"}, 'prompt: "{input}", completion: "{output}"'),
        (
            {"instruction": "a", "context": "b", "response": "c"},
            'prompt: "{instruction}\\n{context}", completion: "{response}"',
        ),
        ({"prompt": "a", "response": "b"}, 'prompt: "{prompt}", completion: "{response}"'),
        ({"question": "a", "completion": "b"}, 'prompt: "{question}", completion: "{completion}"'),
        ({"input_ids": [1], "labels": [1]}, "input_ids are already tokens"),
        # names in another case
        ({"Question": "a", "Answer": "b"}, 'prompt: "{Question}", completion: "{Answer}" next to'),
        ({"Text": "a", "Label": 1}, 'prompt: "{Text}", completion: "{Label}", labels: [NAME OF 0'),
        ({**BOTH, "System Prompt": "Be kind."}, "'System Prompt' is not read under this name"),
        (
            {"system_prompt": "s", "question": "a", "Complex CoT": "b", "response": "c"},
            'prompt: "{system_prompt}\\n{question}", completion: "{Complex CoT}\\n{response}"',
        ),
        # labels by other names, and numbers as a table without a cell of them writes them
        *(
            ({"text": "a", key: "b"}, f'completion: "{{{key}}}" next to path')
            for key in ("Label", "Sentiment", "rating", "stars", "topic", "category", "label_name")
        ),
        *(
            ({"text": "a", key: 1}, f'completion: "{{{key}}}", labels: [NAME OF 0, NAME OF 1]')
            for key in ("LABEL", "genre", "class", "intent", "emotion", "target", "gold_label")
        ),
        ({"text": "a", "label": "1.0"}, "labels: [NAME OF 0"),
        ({"text": "a", "label": 1.0}, "labels: [NAME OF 0"),
        # columns that belong to the question, or to the answer
        (
            {"context": "b", **BOTH},
            'context would be left out of the question; write prompt: "{context}\\n{prompt}", '
            'completion: "{completion}" next to path or hub, or remove it',
        ),
        ({**BOTH, "context": "c"}, "context would be left out"),
        (
            {"text": "a", "context": "b", "label": "c"},
            'prompt: "{text}\\n{context}", completion: "{label}"',
        ),
        ({**BOTH, "documents": [{"text": "b"}]}, "documents would be left out of the question"),
        ({**BOTH, "input": "b"}, 'prompt: "{prompt}\\n{input}", completion: "{completion}"'),
        ({**BOTH, "instruction": "b"}, 'prompt: "{prompt}\\n{instruction}"'),
        (
            {"instruction": "a", "context": "b", "input": "d", "output": "c"},
            'prompt: "{instruction}\\n{context}\\n{input}", completion: "{output}"',
        ),
        (
            {"context": "a", "question": "b", "answer": "c"},
            'prompt: "{context}\\n{question}", completion: "{answer}"',
        ),
        *(
            (
                {**BOTH, key: "b"},
                f'write prompt: "{{prompt}}", completion: "{{{key}}}\\n{{completion}}"',
            )
            for key in ("reasoning_content", "reasoning", "thinking")
        ),
        ({"messages": CHAT, "reasoning": "b"}, "write it in the message with the answer"),
        ({"messages": CHAT, "context": "b"}, "put it into the message with the question"),
        ({"messages": CHAT, "documents": [{"text": "b"}]}, 'chat_template_kwargs: {"documents"'),
        ({"messages": CHAT, "functions": [{"name": "f"}]}, "functions is not read under this name"),
        ({**BOTH, "chat_history": [["a", "b"]]}, "write history: a list of [question, answer]"),
        (
            {"messages": [USER, ASSISTANT | {"function_call": {"name": "f"}}]},
            "message 2: function_call is the older form of tool_calls",
        ),
        # two answers
        ({"messages": CHAT, "output": "hi"}, "output and messages have different answers"),
        ({"messages": CHAT, "response": ["bye"]}, "response and messages have different answers"),
        ({**BOTH, "response": "a"}, "response and completion have different answers"),
        (
            {"instruction": "a", "output": "b", "completion": "c"},
            "completion and output have different answers",
        ),
        # rows that are not to be learned
        ({**BOTH, "weight": 0}, "weight 0 is for the whole row"),
        ({**BOTH, "weight": "0.5"}, "weight '0.5' is for the whole row"),
        ({"messages": CHAT, "train": False}, "write weight 0 on a message of the assistant's"),
        ({"text": "a", "train": "false"}, "train 'false' is for the whole row"),
        ({"messages": [USER, ASSISTANT | {"loss": False}]}, "so nothing is learned"),
        ({"messages": [USER, ASSISTANT | {"loss": 0.5}]}, "loss must be true or false, not 0.5"),
        ({"messages": [USER, ASSISTANT | {"train": True, "loss": 0}]}, "say different things"),
        ({"messages": [USER, ASSISTANT | {"train_detail": [1]}]}, "train_detail is not supported"),
        # two forms that say different things
        ({"prompt": "a", "messages": CHAT}, "prompt and messages differ"),
        (
            {"prompt": "hi", "completion": "a", "messages": CHAT},
            "completion and messages differ",
        ),
        ({"messages": CHAT, "conversations": [SYSTEM, *CHAT]}, "hold two conversations"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "text differs from the other columns"),
        ({"messages": [SYSTEM, *CHAT], "system": "Be rude."}, "say different things"),
        (
            {"messages": CHAT, "system": "a", "system_prompt": "b"},
            "system and system_prompt differ",
        ),
        # what no row can hold
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen makes it a row of preferences"),
        ({"prompt": "a", "completion": "b", "label": False}, "whether the completion is liked"),
        ({"prompt": "a", "completion": "b", "label": "True"}, "whether the completion is liked"),
        ({"messages": CHAT, "label": False}, "label says whether the completion is liked"),
        ({"messages": CHAT, "Label": "true"}, "Label says whether the completion is liked"),
        ({"messages": CHAT, "kto_tag": 1}, "kto_tag says whether the completion is liked"),
        ({"instruction": "a", "output": "b", "label": True}, "whether the completion is liked"),
        ({"messages": CHAT, "rejected_response": "b"}, "rejected_response makes it a row of pref"),
        ({"messages": CHAT, "images": ["a.png"]}, "images is not learned"),
        ({"text": "a", "audio": {"path": "a.wav"}}, "audio is not learned"),
        (
            {"messages": [USER | {"content": [{"type": "image"}]}, ASSISTANT]},
            "part of type 'image'",
        ),
        (
            {
                "messages": [
                    USER | {"content": [{"type": "image_url", "image_url": "x"}]},
                    ASSISTANT,
                ]
            },
            "message 1 holds a part of type 'image_url'",
        ),
        ({"messages": [USER, ASSISTANT | {"due": float("nan")}]}, "message 2: due is not plain"),
        ({"messages": [USER, ASSISTANT | {"at": {1, 2}}]}, "message 2: at is not plain JSON"),
        # what belongs to messages, or to an answer
        ({"prompt": "a", "completion": "b", "tools": [TOOL]}, "tools go to the chat template"),
        ({"text": "a", "system": "b"}, "system cannot be used with a text"),
        ({"text": "a", "history": [["b", "c"]]}, "history cannot be used with a text"),
        ({"text": "a", "references": ["b"]}, "a row of text has none"),
        ({"prompt": "a", "completion": "b", "references": [1]}, "references must be text"),
        ({"prompt": "a", "completion": "b", "references": 3}, "must be a list of texts"),
        ({"prompt": "a", "completion": []}, "completion is an empty list"),
        ({"prompt": "a", "completion": ["b", 3]}, "completion must be text, not int"),
        ({"messages": CHAT, "tools": "weather"}, "tools must be a list of functions"),
        ({"messages": CHAT, "tools": "[weather]"}, "tools looks like JSON and is not"),
        ({"messages": CHAT, "chat_template_kwargs": [1]}, "must be a mapping"),
        (
            {"instruction": "a", "output": "b", "history": [["q"]]},
            "a list of [question, answer]",
        ),
        # roles, and which turns are learned
        ({"messages": [USER | {"role": "usr"}, ASSISTANT]}, "did you mean 'user'"),
        (
            {"conversations": [{"from": "narrator", "value": "a"}, ASSISTANT]},
            "'narrator' is not a role",
        ),
        (
            {"conversations": [USER, {"from": "function_call", "value": "f()"}]},
            "must be JSON such as",
        ),
        ({"messages": [USER, ASSISTANT | {"weight": 2}]}, "weight must be 0 or 1, not 2"),
        ({"messages": [USER, ASSISTANT | {"train": "no"}]}, "train must be true or false"),
        ({"messages": [USER, ASSISTANT | {"weight": 0}]}, "so nothing is learned"),
        ({"messages": [USER, ASSISTANT | {"weight": 1, "train": False}]}, "different things"),
        (
            {"messages": [USER | {"train": True}, ASSISTANT]},
            "only the assistant's turns are learned",
        ),
        ({"messages": [USER, ASSISTANT | {"content": None}]}, "content of message 2 is missing"),
        ({"messages": [USER, ASSISTANT | {"content": [{"type": "text"}]}]}, "a part must be"),
    ],
)
def test_what_cannot_be_a_row_is_refused_by_name(record, error_line):
    assert error_line in refused(record)


def test_which_turns_are_learned():
    assert [learned(message) for message in CALLING] == [False, True, False, True]
    assert not learned(ASSISTANT | {"weight": 0})
    assert not learned(ASSISTANT | {"train": False})


def test_the_answers_of_a_row():
    row = as_row({"messages": CALLING, "tools": [TOOL], "references": ["wet", "rain"]}, "r")
    assert references(row) == ["rain", "wet"]
    with_another_answer = answered(row, "sun")
    assert with_another_answer["messages"][-1] == {"role": "assistant", "content": "sun"}
    assert with_another_answer["tools"] == [TOOL]
    assert references(with_another_answer) == ["sun"]
    assert answer({"messages": CALLING[:2]}) == ""


def test_columns_that_are_no_part_of_a_row_are_told_once(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": "b", "id": i, "meta": {"url": "x"}} for i in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"split": "test"}]))
    note = f"{path}: left out, as they are not part of a row: id, meta, split"
    assert read(path).notes == (note,)
    split = file_split(path, 2, 0)
    assert split.notes == (note,)
    assert split.number(0) == split.numbers[0]
    path.write_text('{"prompt": "a", "completion": "b", "id": null}\n')
    assert file_split(path, None, 0).notes == ()


def test_columns_are_told_of_a_table_and_of_a_dataset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(",text,label\n0,fine,good\n")
    notes = read("a.csv").notes
    assert notes == (
        "a.csv: left out, as they are not part of a row: (one without a name)",
        "a.csv: text and label are read as prompt and completion, with nothing between them; "
        "write the columns prompt and completion to put a space or a line break there",
    )
    rows = [{"text": "fine", "label": 1, "id": 7}, {"text": "bad", "label": 0, "id": 8}]
    write_dataset(tmp_path / "acme" / "moods", {"train": rows}, ["bad", "good"])
    split = file_split("hub:acme/moods", None, 0)
    assert split.rows[0] == {"prompt": "fine", "completion": "good"}
    assert split.notes[0] == "hub:acme/moods:train: left out, as they are not part of a row: id"
    assert split.numbers == (1, 2)


def test_a_dataset_goes_by_the_same_rules(hub_rows):
    with pytest.raises(PerdureError, match=r"row 1: chosen makes it a row of preferences"):
        hub_rows([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(PerdureError, match=r"row 1: .*labels: \[NAME OF 0"):
        hub_rows([{"text": "a", "label": 0}])
    assert hub_rows([{"messages": CALLING, "tools": json.dumps([TOOL])}, {"messages": CHAT}])[
        0
    ] == {"messages": CALLING, "tools": [TOOL]}


@pytest.fixture
def hub_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def rows(records):
        write_dataset(tmp_path / "acme" / "rows", {"train": records})
        return file_split("hub:acme/rows", None, 0).rows

    return rows


def test_an_image_of_a_dataset_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    import datasets

    from perdure.data import hub

    features = datasets.Features({"text": datasets.Value("string"), "picture": datasets.Image()})
    dataset = datasets.Dataset.from_dict({"text": ["a"], "picture": ["no-such.png"]}, features)
    monkeypatch.setattr(hub, "load", lambda *args: (dataset, None))
    with pytest.raises(PerdureError, match="'picture' has data of type Image"):
        file_split("hub:acme/pictures", None, 0)


def test_a_list_of_right_answers_goes_through_a_template(tmp_path):
    path = tmp_path / "squad.jsonl"
    answers = {"text": ["Oslo", "in Oslo"], "answer_start": [1, 1]}
    rows = [{"question": "where ?", "answers": answers}, {"question": "who ?", "answers": ["I"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(path), "prompt": "{question}", "completion": "{answers}"}
    assert file_split(source, None, 0).rows == (
        {"prompt": "where ?", "completion": "Oslo", "references": ["in Oslo"]},
        {"prompt": "who ?", "completion": "I"},
    )


def test_labels_name_integers_that_a_table_writes_as_1_0(tmp_path):
    path = tmp_path / "moods.csv"
    path.write_text("text,label\nfine,1.0\nbad,0.0\n")
    with pytest.raises(PerdureError, match=r"labels: \[NAME OF 0"):
        read_rows(path)
    source = {"path": str(path), "prompt": "{text}", "completion": "{label}"}
    rows = file_split(source | {"labels": ["bad", "good"]}, None, 0).rows
    assert [row["completion"] for row in rows] == ["good", "bad"]


def test_a_mapping_is_made_of_the_columns_that_are_there():
    assert mapping(["a", "b"]) == 'prompt: "{a}", completion: "{b}"'
    assert mapping(["a"]) == 'prompt: "{a}", completion: "{COLUMN}"'
    assert mapping([]) == 'prompt: "{COLUMN}", completion: "{COLUMN}"'


ROWS = [
    {"prompt": 'say "hi"', "completion": "tab\there"},
    {"prompt": "b\u2028c", "completion": "d"},
]


def test_every_format_gives_the_same_rows(tmp_path):
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    cells = [['"say ""hi"""', '"tab\there"'], ["b\u2028c", "d"]]
    texts = {
        ".jsonl": lines,
        ".json": json.dumps(ROWS, indent=1),
        ".lines.json": lines,
        ".csv": "".join(",".join(row) + "\n" for row in [["prompt", "completion"], *cells]),
        ".tsv": "".join("\t".join(row) + "\n" for row in [["prompt", "completion"], *cells]),
    }
    for suffix, text in texts.items():
        (tmp_path / f"rows{suffix}").write_text(text, encoding="utf-8")
        (tmp_path / f"rows{suffix}.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
        assert read_rows(tmp_path / f"rows{suffix}") == ROWS, suffix
        assert read_rows(tmp_path / f"rows{suffix}.gz") == ROWS, suffix
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet") == ROWS
    (tmp_path / "one.json").write_text(json.dumps(ROWS[0]))
    assert read_rows(tmp_path / "one.json") == ROWS[:1]


@pytest.mark.parametrize(
    ("name", "content", "error_line"),
    [
        ("a.json", '{"data": [{"text": "a"}]}', "an array under 'data'; write only the array"),
        (
            "a.json",
            '[{"text": "a"}, {"text": }]',
            "a.json: not JSON (Expecting value at column 26)",
        ),
        (
            "a.json",
            '{"version": "1", "data": [{"text": "a"}]}',
            "an array under 'data'; write only the array",
        ),
        ("a.jsonl", '[{"text": "a"}, {"text": "b"}]', "holds a JSON array"),
        ("a.jsonl", '\n[\n {"text": "a"}\n]\n', "name it a.json"),
        ("a.json", "[", "a .json file must hold one array"),
        ("a.json", "3", "expected an array of rows, got int"),
        ("a.json", '[{"text": "a"}, 3]', "row 2: expected an object"),
        ("a.json", "[]", "holds no rows"),
        ("a.json", '[{"text": "a", "text": "b"}]', "the key 'text' occurs twice"),
        ("a.jsonl", '{"text": "a"}\n{"text": "a", "text": "b"}', "row 2: the key 'text' occurs"),
        ("a.jsonl", "[" * 100_000, "nested too deeply"),
        ("a.jsonl", '{"text": NaN}', "row 1: text must be text, not float"),
        ("a.csv", "text,text\na,b\n", "column 'text' occurs twice"),
        ("a.csv", "prompt;completion\na;b\n", "its cells are separated by ';'; save it as .csv"),
        ("a.tsv", "prompt,completion\na,b\n", "its cells are separated by ','"),
        ("a.tsv", "prompt\tcompletion\na\tb\tc\n", "contain tabs in quotes"),
        ("a.tsv", 'text\n"a"b\n', "not TSV"),
    ],
)
def test_a_file_that_is_not_as_its_name_says(name, content, error_line, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(PerdureError) as error:
        read_rows(tmp_path / name)
    assert error_line in str(error.value)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, 0.0, False, 5])
def test_an_input_that_is_no_text_is_refused_and_not_left_out(value):
    with pytest.raises(PerdureError, match="input"):
        as_row({"instruction": "Is it even?", "input": value, "output": "yes"}, "a.jsonl, row 1")


def test_the_keys_of_tools_and_calls_are_written_in_the_order_in_which_they_were(tmp_path):
    """A chat template writes them in that order, so another one would be another prompt."""
    call = {"type": "function", "function": {"name": "book", "arguments": {"to": "x", "from": "y"}}}
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    tool = {"type": "function", "function": {"name": "book", "description": "Books."}}
    row = as_row({"messages": messages, "tools": [tool]}, "row 1")
    write_rows(tmp_path / "rows.jsonl", [row])
    (again,) = read_rows(tmp_path / "rows.jsonl")
    assert json.dumps(again) == json.dumps(dict(sorted(row.items())))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nfine film,good\nwe waited,\n"),
        ("a.csv", "text,label\nfine film,good\nwe waited\n"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": "we waited", "label": null}\n'),
    ],
)
def test_a_text_whose_label_is_empty_is_refused(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(PerdureError, match=r"row 2: label is empty; fill it in, remove the row"):
        read_rows(tmp_path / name)
    table = pyarrow.table({"text": ["a", "we waited"], "label": ["b", None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(PerdureError, match=r"a\.parquet, row 2: label is empty"):
        read_rows(tmp_path / "a.parquet")
    write_dataset(tmp_path / "acme" / "set", {"train": table.to_pylist()})
    with pytest.raises(PerdureError, match=r"row 2: label is empty"):
        file_split(f"hub:{tmp_path}/acme/set", None, 0)


def test_a_dataset_in_memory_has_the_rows_that_its_file_has(tmp_path):
    def calling(arguments):
        call = {"type": "function", "function": {"name": "go", "arguments": arguments}}
        return {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]}

    dataset = Dataset.from_list([calling({"city": "B"}), calling({"id": 1})])
    dataset.to_parquet(tmp_path / "rows.parquet")
    given = checked(_rows_of)(dataset)
    assert [as_row(row, "r") for row in given] == read_rows(tmp_path / "rows.parquet")
    (first, _) = read_rows(tmp_path / "rows.parquet")
    called = first["messages"][1]["tool_calls"][0]["function"]
    assert called["arguments"] == {"city": "B"}


def _rows_of(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return list(rows)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"promt": "a", "completion": "c"}, "prompt is missing; is 'promt' meant? rename it"),
        ({"prompt": "a", "completon": "c"}, "completion is missing; is 'completon' meant?"),
        ({"prompt": "a", "index": "c"}, "completion is missing; every row needs one"),
    ],
)
def test_a_key_that_is_nearly_right_is_named(record, line):
    assert line in refused(record)
