"""Rows as text: what stands before the answer, and what the model is to write."""

from transformers import PreTrainedTokenizerBase

from engram.data.chat import asked, is_chat, last_turn, write
from engram.data.rows import Row


def prompt_text(row: Row, tokenizer: PreTrainedTokenizerBase, where: str = "the row") -> str:
    """The prompt as the model reads it; for messages, up to where the assistant's last begins."""
    if "text" in row:
        return ""
    if not is_chat(row):
        return row["prompt"]
    return write(asked(row), row, tokenizer, where, generation_prompt=True)


def completion_text(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """What the model is to write, without the end token unless the chat template writes one."""
    return row_texts(row, tokenizer)[1]


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
    whole, turn = last_turn(row, tokenizer, where)
    return prompt_text(row, tokenizer, where), whole[turn]
