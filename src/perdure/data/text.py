"""Rows as text: the prompt that the model reads, and the completion that it should write."""

from transformers import PreTrainedTokenizerBase

from perdure.data.chat import last_turn, prompt_messages, write
from perdure.data.columns import is_chat
from perdure.data.rows import Row


def prompt_text(row: Row, tokenizer: PreTrainedTokenizerBase, where: str = "the row") -> str:
    """Return the prompt as the model reads it.

    For messages this is the chat template's text with the generation prompt, up to where the
    assistant's last turn begins. A row of text has an empty prompt.

    Raises:
        PerdureError: the tokenizer has no chat template for messages, or it does not fit them.
    """
    if "text" in row:
        return ""
    if not is_chat(row):
        return row["prompt"]
    return write(prompt_messages(row), row, tokenizer, where, generation_prompt=True)


def completion_text(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text that the model should write.

    It has an end token only where the chat template writes one.
    """
    return row_texts(row, tokenizer)[1]


def row_texts(
    row: Row, tokenizer: PreTrainedTokenizerBase, where: str = "the row"
) -> tuple[str, str]:
    """Return the prompt and the completion as text.

    For messages, the completion is the text that the chat template adds for the last answer.

    Raises:
        PerdureError: the tokenizer has no chat template for messages, or it does not fit them.
    """
    if "text" in row:
        return "", row["text"]
    if not is_chat(row):
        return row["prompt"], row["completion"]
    whole, turn = last_turn(row, tokenizer, where)
    return prompt_text(row, tokenizer, where), whole[turn]
