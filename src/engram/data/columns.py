"""The columns of other tools by their names: which are asked, which are answers, which are neither.

A column beside a row is left out if it has no part in it. One that belongs to the question or to
the answer, and that the row does not hold already, would be lost: it is refused with the templates
that make it a part of the row. Names are compared without regard to case, spaces and hyphens.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from engram.errors import EngramError


Row = dict[str, Any]
# Columns that other tools learn as the answer to what stands beside them, the likeliest first.
ANSWERS = (
    *("completion", "output", "response", "answer", "answers", "label_text", "label", "labels"),
    *("target", "targets", "class", "sentiment", "emotion", "intent", "category", "summary"),
    *("highlights", "outputs", "solution", "reply"),
)
ASKED = (
    *("prompt", "instruction", "inputs", "input", "context", "passage", "premise", "hypothesis"),
    *("sentence", "sentence1", "sentence2", "question", "question1", "question2", "query", "text"),
    *("text1", "text2", "content", "title", "document", "article", "dialogue", "body", "review"),
    *("comment", "tweet", "utterance", "problem", "message"),
)
# Beside a text these say that it is not the text that is to be learned, but they.
LABELS = tuple(name for name in ANSWERS if name != "category")
# So do these, where none of those is there.
CLASSES = (
    *("category", "categories", "label_name", "label_names", "label_str", "label_id", "label_idx"),
    *("class_name", "class_label", "class_id", "classes", "topic", "topics", "genre", "genres"),
    *("emotions", "intents", "sentiments", "polarity", "stance", "toxic", "toxicity", "is_toxic"),
    *("spam", "is_spam", "gold", "verdict"),
)
RATINGS = ("rating", "ratings", "stars", "star", "star_rating")
LIKE_LABELS = re.compile(r"\w+_(label|labels|class|sentiment|emotion|intent|topic|genre|rating)")
_ANSWERED = "(answer|completion|messages?|output|rating|responses?|reward|score|text)"
PREFERENCES = re.compile(rf"(chosen|rejected)(_{_ANSWERED})?|{_ANSWERED}_(chosen|rejected)")

# Columns that belong to the question wherever they stand, and not to a text about it.
QUESTION = (
    *(name for name in ASKED if name not in ("text", "title", "comment", "message")),
    *("contexts", "instructions", "questions", "passages", "paragraph", "paragraphs", "articles"),
    *("documents", "docs", "background", "evidence", "choices", "user_input"),
    *("system_instruction", "system_instructions"),
)
SYSTEM = ("system", "system_prompt", "system_message")
THOUGHTS = (
    *("reasoning_content", "reasoning", "thinking", "thoughts", "thought", "rationale"),
    *("chain_of_thought", "cot", "complex_cot"),
)
SAID = ("completion", "output", "response", "reply")
EARLIER = ("chat_history", "conversation_history", "dialogue_history", "dialog_history")
REPEATED = ("prompt", "completion", "instruction")
FUNCTIONS = ("functions", "available_tools", "tool_definitions", "function_definitions")
LIKED = ("label", "kto_tag", "kto_label", "liked", "is_liked", "desirable", "is_desirable")
WEIGHTS = ("weight", "loss_weight", "sample_weight", "row_weight")
TRAINED = ("train", "training", "loss", "trainable", "learn")
EXACT = (
    *("prompt", "completion", "messages", "system", "system_prompt", "system_message", "history"),
    *("tools", "references", "chat_template_kwargs", "conversations"),
)
# What stands under such a name may only switch something on or off.
SWITCHES = ("on", "off", "true", "false", "yes", "no", "none", "low", "medium", "high")


def plain(name: Any) -> str:
    """A column's name as names are compared."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def column(record: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first column of a record that says something and has one of these names."""
    valid = set(names)
    return next(
        (key for key in record if plain(key) in valid and _says_something(record[key])), None
    )


def answer_column(names: Iterable[str]) -> str | None:
    """The column that is most likely the answer, by its name alone."""
    names = list(names)
    for wanted in (*ANSWERS, *CLASSES, *RATINGS):
        for name in names:
            if plain(name) == wanted:
                return name
    return next((name for name in names if LIKE_LABELS.fullmatch(plain(name))), None)


def label_columns(record: Mapping[str, Any]) -> list[str]:
    """The columns that a text is given to, rather than learned beside them."""
    labels = [key for key in record if plain(key) in LABELS]
    return labels or [
        key
        for key in record
        if (plain(key) in (*CLASSES, *RATINGS) or LIKE_LABELS.fullmatch(plain(key)))
        and _says_something(record[key])
    ]


def is_numbered(record: Mapping[str, Any]) -> bool:
    """Whether the labels are whole numbers, whose names nobody has told.

    A table that has lost a cell of the column writes them as 1.0.
    """
    key = answer_column(map(str, record))
    name = plain(key)
    named = (*ANSWERS[: ANSWERS.index("label")], *ANSWERS[ANSWERS.index("summary") :], *RATINGS)
    if key is None or name in named or name.endswith("_rating"):
        return False
    return re.fullmatch(r"-?\d+(\.0*)?", str(record.get(key)).strip()) is not None


def mapping(columns: Iterable[Any], numbered: bool = False) -> str:
    """The templates that make rows of columns with these names, as a YAML would have them."""
    names = [str(name) for name in columns]
    answer = answer_column(names) or (names[1:] or ["COLUMN"])[-1]
    asked = [name for name in names if plain(name) in (*ASKED, *QUESTION) and name != answer]
    asked = asked or [name for name in names if name != answer][:1] or ["COLUMN"]
    systems = [name for name in names if plain(name) in SYSTEM and name not in (*asked, answer)]
    thoughts = [name for name in names if plain(name) in THOUGHTS and name not in (*asked, answer)]
    labels = ", labels: [NAME OF 0, NAME OF 1]" if numbered else ""
    return f"{_templates([*systems, *asked], [*thoughts, answer])}{labels}"


def check_left_out(record: Mapping[str, Any], row: Row, used: set[str], where: str) -> None:
    """Raise EngramError for a column that is no part of the row and that would be missed.

    `row` is the row that the columns in `used` have made of the record.
    """
    others = {key: value for key, value in record.items() if key not in used}
    _check_flags(others, row, where)
    if "text" in row:
        return
    miswritten = column({key: others[key] for key in others if key not in EXACT}, EXACT)
    if miswritten:
        raise EngramError(
            f"{where}: {miswritten!r} is not read under this name; write it {plain(miswritten)}"
        )
    _check_template(others, row, where)
    if "messages" in row:  # which have been compared with these
        others = {key: others[key] for key in others if key not in REPEATED}
    elif _writes_out(others.get("prompt"), row):
        del others["prompt"]
    for names, said, about in (
        (QUESTION, _question(row), _about_question),
        (THOUGHTS, _spaced(_texts(row)), _about_thoughts),
        (SAID, _answer(row), _about_answer),
    ):
        missing = [key for key in others if plain(key) in names and _is_missing(others[key], said)]
        if missing:
            raise EngramError(f"{where}: {about(missing, record, row)}")


def _check_flags(others: Mapping[str, Any], row: Row, where: str) -> None:
    """Raise EngramError for what says that the row is not to be learned, or not as it is."""
    for key, value in others.items():
        name, says = plain(key), str(value).strip().lower()
        if _is_weight(name, says):
            more = ", or write weight 0 on a message of the assistant's" if _is_chat(row) else ""
            raise EngramError(
                f"{where}: {key} {value!r} is of the whole row, and rows have no weights; take out "
                f"the rows that are not to be learned, and the column{more}"
            )
        is_truth = says in ("true", "false") or (name.startswith("kto") and says in ("0", "1"))
        if name in LIKED and is_truth and "text" not in row:
            raise EngramError(
                f"{where}: {key} says whether the completion is liked, and rows of preferences are "
                f"not learned; keep the liked ones and take {key} out"
            )


def _is_weight(name: str, says: str) -> bool:
    """Whether a column gives its row another weight than all rows have."""
    if name in TRAINED:
        return says == "false" or (name != "loss" and says in ("0", "0.0", "no"))
    try:
        return name in WEIGHTS and (says == "false" or float(says) != 1)
    except ValueError:  # a word
        return False


def _check_template(others: Mapping[str, Any], row: Row, where: str) -> None:
    """Raise EngramError for what a chat template reads, under a name that it does not."""
    functions, earlier = column(others, FUNCTIONS), column(others, EARLIER)
    if functions:
        raise EngramError(
            f"{where}: {functions} is not read under this name; write "
            'tools: [{"type": "function", "function": {"name": ..., "parameters": ...}}] beside '
            "messages"
        )
    if earlier:
        raise EngramError(
            f"{where}: {earlier} is not read under this name; write history: a list of "
            "[question, answer] pairs or of messages"
        )
    documents = column(others, ("documents", "docs"))
    if documents and _is_chat(row):
        raise EngramError(
            f"{where}: {documents} would be left out; write chat_template_kwargs: "
            '{"documents": ...} if the chat template reads them, or put them into the message that '
            "asks"
        )


def _about_question(missing: list[str], record: Mapping[str, Any], row: Row) -> str:
    them = "it" if len(missing) == 1 else "them"
    lost = f"{', '.join(missing)} would be left out of the question"
    if _is_chat(row):
        return f"{lost}; put {them} into the message that asks, or take {them} out"
    asked, answer = _parts(record)
    asked = [key for key in record if key in (*asked, *missing)]
    return f"{lost}; write {_templates(asked, [answer])} beside path or hub, or take {them} out"


def _about_thoughts(missing: list[str], record: Mapping[str, Any], row: Row) -> str:
    key = missing[0]
    message = '{"role": "assistant", "reasoning_content": ..., "content": ...}'
    if _is_chat(row):
        return f"{key} would be left out; write it in the message that answers: {message}"
    asked, answer = _parts(record)
    return (
        f"{key} would be left out of the answer; write {_templates(asked, [key, answer])} beside "
        f"path or hub, or messages with {message}, or take it out"
    )


def _about_answer(missing: list[str], record: Mapping[str, Any], row: Row) -> str:
    asked, answer = _parts(record)
    beside = "messages" if "messages" in row else answer
    differ = f"{missing[0]} stands beside {beside} and says something else; take one of them out"
    if _is_chat(row):
        return differ
    return (
        f"{differ}, or say with {_templates(asked, [answer])} beside path or hub which one is "
        "learned"
    )


def _parts(record: Mapping[str, Any]) -> tuple[list[str], str]:
    """The columns that have made a plain row: what is asked, and the answer."""
    if "prompt" in record and "completion" in record:
        return ["prompt"], "completion"
    if "instruction" in record and "output" in record:
        return [key for key in ("instruction", "input") if record.get(key)], "output"
    return ["text"], "label"


def _templates(asked: Iterable[str], said: Iterable[str]) -> str:
    prompt, completion = ("\\n".join(f"{{{name}}}" for name in names) for names in (asked, said))
    return f'prompt: "{prompt}", completion: "{completion}"'


def _is_chat(row: Row) -> bool:
    return "messages" in row or isinstance(row.get("prompt"), list)


def _is_missing(value: Any, said: str) -> bool:
    """Whether a column says something that is not said already."""
    texts = [_spaced([text]) for text in _texts(value)]
    return any(not _holds(said, text) for text in texts if text not in ("", *SWITCHES))


def _holds(said: str, text: str) -> bool:
    """Whether a text is a part of what is said; a short one as whole words."""
    if len(text) > 15 or not text.isascii():
        return text in said
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said) is not None


def _writes_out(prompt: Any, row: Row) -> bool:
    """Whether a column is the row's own prompt, written out with more around it."""
    asked = row.get("prompt")
    if not isinstance(prompt, str) or not isinstance(asked, str):
        return False
    return all(_spaced([line]) in _spaced([prompt]) for line in asked.splitlines())


def _says_something(value: Any) -> bool:
    is_nan = isinstance(value, float) and value != value  # an empty cell, to pandas
    return not is_nan and str(value).strip() not in ("", "[]", "{}")


def _question(row: Row) -> str:
    return _spaced(_texts(row["messages"][:-1] if "messages" in row else row["prompt"]))


def _answer(row: Row) -> str:
    messages = row.get("messages", row.get("completion"))
    if isinstance(messages, list):
        messages = [message for message in messages if message["role"] == "assistant"]
    return _spaced(_texts([messages, row.get("references", [])]))


def _spaced(texts: Iterable[str]) -> str:
    """Texts as they are compared: without regard to case and to the kind of white space."""
    return " ".join("\n".join(texts).lower().split())


def _texts(value: Any) -> list[str]:
    """All texts inside a value; a message's role, and what kind of a part it is, are none."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = [inner for key, inner in value.items() if key not in ("role", "from", "type", "id")]
    elif not isinstance(value, list | tuple):
        return []
    return [text for inner in value for text in _texts(inner)]
