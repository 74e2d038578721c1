"""Columns of other tools, recognised by name: questions, answers, and others.

A column that is not part of a row is left out. A column that belongs to the question or to the
answer, and whose text the row does not hold already, would be lost. It is therefore refused, with
the templates that make it a part of the row. Names are compared ignoring case, and with spaces and
hyphens read as underscores.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from perdure.errors import PerdureError


Row = dict[str, Any]
# Columns that other tools learn as the answer, the likeliest first.
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
# A text with one of these columns is a question, and the column is its answer.
LABELS = tuple(name for name in ANSWERS if name != "category")
# So is a text with one of these columns, if the record has none of `LABELS`.
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

# Columns that belong to the question in any row, rather than being remarks about it.
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
# A column with one of these values is a switch or a level, and not text that would be missed.
SWITCHES = ("on", "off", "true", "false", "yes", "no", "none", "low", "medium", "high")


def is_chat(row: Row) -> bool:
    """Return whether a row has messages, so that the chat template writes its special tokens."""
    return "messages" in row or isinstance(row.get("prompt"), list)


def plain(name: Any) -> str:
    """Normalise a column's name for comparison: lower case, with underscores."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def column(record: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """Return the first column of a record that has one of these names and is not empty."""
    valid = set(names)
    return next(
        (key for key in record if plain(key) in valid and _says_something(record[key])), None
    )


def answer_column(names: Iterable[str]) -> str | None:
    """Return the column that is most likely the answer, judged by its name only."""
    names = list(names)
    for wanted in (*ANSWERS, *CLASSES, *RATINGS):
        for name in names:
            if plain(name) == wanted:
                return name
    return next((name for name in names if LIKE_LABELS.fullmatch(plain(name))), None)


def label_columns(record: Mapping[str, Any]) -> list[str]:
    """Return the columns that look like labels of a text, so that it is not learned by itself."""
    labels = [key for key in record if plain(key) in LABELS]
    return labels or [
        key
        for key in record
        if (plain(key) in (*CLASSES, *RATINGS) or LIKE_LABELS.fullmatch(plain(key)))
        and _says_something(record[key])
    ]


def is_numbered(record: Mapping[str, Any]) -> bool:
    """Return whether the answer is a class number without a name.

    A table with an empty cell in the column may write such numbers as 1.0.
    """
    key = answer_column(map(str, record))
    name = plain(key)
    named = (*ANSWERS[: ANSWERS.index("label")], *ANSWERS[ANSWERS.index("summary") :], *RATINGS)
    if key is None or name in named or name.endswith("_rating"):
        return False
    return re.fullmatch(r"-?\d+(\.0*)?", str(record.get(key)).strip()) is not None


def mapping(columns: Iterable[Any], numbered: bool = False) -> str:
    """Suggest templates, as they are written in YAML, that make rows of columns with these names.

    With `numbered`, the suggestion also has `labels`, the names of the answer's numbers.
    """
    names = [str(name) for name in columns]
    answer = answer_column(names) or (names[1:] or ["COLUMN"])[-1]
    questions = [name for name in names if plain(name) in (*ASKED, *QUESTION) and name != answer]
    questions = questions or [name for name in names if name != answer][:1] or ["COLUMN"]
    others = [name for name in names if name not in (*questions, answer)]
    systems = [name for name in others if plain(name) in SYSTEM]
    thoughts = [name for name in others if plain(name) in THOUGHTS]
    labels = ", labels: [NAME OF 0, NAME OF 1]" if numbered else ""
    return f"{_templates([*systems, *questions], [*thoughts, answer])}{labels}"


def check_left_out(record: Mapping[str, Any], row: Row, used: set[str], where: str) -> None:
    """Check that no column which belongs to the row would be left out of it.

    Args:
        record: the record.
        row: the row that was made of the record.
        used: the columns that the row was made from.
        where: the beginning of the error line.

    Raises:
        PerdureError: such a column would be left out; the line says what to write instead.
    """
    others = {key: value for key, value in record.items() if key not in used}
    _check_flags(others, row, where)
    if "text" in row:
        return
    miswritten = column({key: others[key] for key in others if key not in EXACT}, EXACT)
    if miswritten:
        raise PerdureError(
            f"{where}: {miswritten!r} is not read under this name; write it {plain(miswritten)}"
        )
    _check_template(others, row, where)
    if "messages" in row:  # these columns have been compared with the messages already
        others = {key: others[key] for key in others if key not in REPEATED}
    elif _writes_out(others.get("prompt"), row):
        del others["prompt"]
    for names, row_text, error_line in (
        (QUESTION, _question(row), _about_question),
        (THOUGHTS, _spaced(_texts(row)), _about_thoughts),
        (SAID, _answer(row), _about_answer),
    ):
        candidates = [key for key in others if plain(key) in names]
        missing = [key for key in candidates if _is_missing(others[key], row_text)]
        if missing:
            raise PerdureError(f"{where}: {error_line(missing, record, row)}")


def _check_flags(others: Mapping[str, Any], row: Row, where: str) -> None:
    """Raise PerdureError for a flag by which the row should not be learned, or not fully."""
    for key, value in others.items():
        name, text = plain(key), str(value).strip().lower()
        if _is_weight(name, text):
            more = ", or write weight 0 on a message of the assistant's" if is_chat(row) else ""
            raise PerdureError(
                f"{where}: {key} {value!r} is for the whole row, but rows have no weights; remove "
                f"the rows that should not be learned, and the column{more}"
            )
        is_truth = text in ("true", "false") or (name.startswith("kto") and text in ("0", "1"))
        if name in LIKED and is_truth and "text" not in row:
            raise PerdureError(
                f"{where}: {key} says whether the completion is liked, but rows of preferences "
                f"cannot be learned; keep the liked ones and remove {key}"
            )


def _is_weight(name: str, text: str) -> bool:
    """Return whether a column gives its row a weight other than 1."""
    if name in TRAINED:
        return text == "false" or (name != "loss" and text in ("0", "0.0", "no"))
    try:
        return name in WEIGHTS and (text == "false" or float(text) != 1)
    except ValueError:  # the column holds a word
        return False


def _check_template(others: Mapping[str, Any], row: Row, where: str) -> None:
    """Raise PerdureError for something that chat templates read, but under another name."""
    functions, earlier = column(others, FUNCTIONS), column(others, EARLIER)
    if functions:
        raise PerdureError(
            f"{where}: {functions} is not read under this name; write "
            'tools: [{"type": "function", "function": {"name": ..., "parameters": ...}}] next to '
            "messages"
        )
    if earlier:
        raise PerdureError(
            f"{where}: {earlier} is not read under this name; write history: a list of "
            "[question, answer] pairs or of messages"
        )
    documents = column(others, ("documents", "docs"))
    if documents and is_chat(row):
        raise PerdureError(
            f"{where}: {documents} would be left out; write chat_template_kwargs: "
            '{"documents": ...} if the chat template reads them, or put them into the message with '
            "the question"
        )


def _about_question(missing: list[str], record: Mapping[str, Any], row: Row) -> str:
    them = "it" if len(missing) == 1 else "them"
    lost = f"{', '.join(missing)} would be left out of the question"
    if is_chat(row):
        return f"{lost}; put {them} into the message with the question, or remove {them}"
    if any(isinstance(record[key], list | dict) for key in missing):
        return f"{lost}; write {them} into the question as text, or remove {them}"
    questions, answer = _parts(record)
    questions = [key for key in record if key in (*questions, *missing)]
    return f"{lost}; write {_templates(questions, [answer])} next to path or hub, or remove {them}"


def _about_thoughts(missing: list[str], record: Mapping[str, Any], row: Row) -> str:
    key = missing[0]
    message = '{"role": "assistant", "reasoning_content": ..., "content": ...}'
    if is_chat(row):
        return f"{key} would be left out; write it in the message with the answer: {message}"
    questions, answer = _parts(record)
    return (
        f"{key} would be left out of the answer; write {_templates(questions, [key, answer])} "
        f"next to path or hub, or messages with {message}, or remove it"
    )


def _about_answer(missing: list[str], record: Mapping[str, Any], row: Row) -> str:
    questions, answer = _parts(record)
    row_answer = "messages" if "messages" in row else answer
    differ = f"{missing[0]} and {row_answer} have different answers; remove one of them"
    if is_chat(row):
        return differ
    return f"{differ}, or choose with {_templates(questions, [answer])} next to path or hub"


def _parts(record: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the columns that a row of plain text was made from: the questions and the answer."""
    if "prompt" in record and "completion" in record:
        return ["prompt"], "completion"
    if "instruction" in record and "output" in record:
        return [key for key in ("instruction", "input") if record.get(key)], "output"
    return ["text"], "label"


def _templates(prompt_columns: Iterable[str], completion_columns: Iterable[str]) -> str:
    prompt = "\\n".join(f"{{{name}}}" for name in prompt_columns)
    completion = "\\n".join(f"{{{name}}}" for name in completion_columns)
    return f'prompt: "{prompt}", completion: "{completion}"'


def _is_missing(value: Any, row_text: str) -> bool:
    """Return whether a column holds a text that the row's text does not."""
    texts = [_spaced([text]) for text in _texts(value)]
    return any(not _holds(row_text, text) for text in texts if text not in ("", *SWITCHES))


def _holds(row_text: str, text: str) -> bool:
    """Return whether the row's text contains `text`; a short text must match whole words."""
    if len(text) > 15 or not text.isascii():
        return text in row_text
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", row_text) is not None


def _writes_out(prompt: Any, row: Row) -> bool:
    """Return whether the column `prompt` is the row's own prompt with more text around it."""
    row_prompt = row.get("prompt")
    if not isinstance(prompt, str) or not isinstance(row_prompt, str):
        return False
    return all(_spaced([line]) in _spaced([prompt]) for line in row_prompt.splitlines())


def _says_something(value: Any) -> bool:
    is_nan = isinstance(value, float) and value != value  # pandas writes an empty cell as NaN
    return not is_nan and str(value).strip() not in ("", "[]", "{}")


def _question(row: Row) -> str:
    return _spaced(_texts(row["messages"][:-1] if "messages" in row else row["prompt"]))


def _answer(row: Row) -> str:
    messages = row.get("messages", row.get("completion"))
    if isinstance(messages, list):
        messages = [message for message in messages if message["role"] == "assistant"]
    return _spaced(_texts([messages, row.get("references", [])]))


def _spaced(texts: Iterable[str]) -> str:
    """Join texts for comparison, ignoring case and the kind of white space."""
    return " ".join("\n".join(texts).lower().split())


def _texts(value: Any) -> list[str]:
    """Return all texts inside a value, except a message's role and the type of a part."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = [inner for key, inner in value.items() if key not in ("role", "from", "type", "id")]
    elif not isinstance(value, list | tuple):
        return []
    return [text for inner in value for text in _texts(inner)]
