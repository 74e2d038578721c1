"""Rows as text: what stands before the answer, and what the model is to write."""

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from engram.data.rows import Row
from engram.errors import EngramError


def prompt_text(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as the model reads it; for messages, up to where the assistant begins."""
    return row_texts(row, tokenizer)[0]


def completion_text(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the model is to write, without the end token unless the chat template writes one."""
    return row_texts(row, tokenizer)[1]


def is_chat(row: Row) -> bool:
    """Whether the row is made of messages, so that the chat template writes its special tokens."""
    return "messages" in row or isinstance(row.get("prompt"), list)


def row_texts(
    row: Row, tokenizer: PreTrainedTokenizerBase, where: str = "the row"
) -> tuple[str, str]:
    """Prompt and completion; of messages, the completion is what the template adds for the answer.

    Raises:
        EngramError: the tokenizer has no chat template for messages, or one that does not fit them.
    """
    if "text" in row:
        return "", row["text"]
    if not is_chat(row):
        return row["prompt"], row["completion"]
    said = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    asked = said[:-1] if "messages" in row else row["prompt"]
    if not tokenizer.chat_template:
        raise EngramError(
            f"{where} has messages, but the base's tokenizer has no chat template; "
            "set tokenizer.chat_template or give prompt and completion as text"
        )
    try:
        prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(said, tokenize=False)
    except TemplateError as error:
        raise EngramError(
            f"{where}: the chat template refuses it ({error}); mend the row"
        ) from error
    assert isinstance(prompt, str)
    assert isinstance(whole, str)
    if not whole.startswith(prompt):
        raise EngramError(
            f"{where}: the chat template changes the prompt once the answer is there; "
            "give prompt and completion as text"
        )
    return prompt, whole[len(prompt) :]
