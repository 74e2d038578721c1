"""Tiny models as subjects of the guard, and answers that no model has written."""

import torch

from perdure.measure.guard.rows import read_guard_rows
from perdure.measure.guard.subject import Subject
from perdure.measure.predict import Generated
from perdure.models.base import Base
from tiny import WORDS, tiny_model, tiny_tokenizer


TEMPLATE = (
    "{% for m in messages %}{{ 'answer' if m['role'] == 'assistant' else m['role'] }} : "
    "{{ m['content'] }} </s> {% endfor %}{% if add_generation_prompt %}answer : {% endif %}"
)
ROWS = read_guard_rows(
    [
        {
            "id": f"{skill}{number}",
            "skill": skill,
            "prompt": "question " * number + f"the {word} is",
            "check": {"avoids": [word]},
        }
        for number, word in enumerate(WORDS[:6], 1)
        for skill in ("up", "down")
    ]
)


def subject(kind: str, seed: int, name: str = "tiny", template: str | None = None) -> Subject:
    """A model whose weights are large enough that its answers differ from row to row."""
    model, tokenizer = tiny_model(kind), tiny_tokenizer(kind)
    tokenizer.chat_template = template
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return Subject(name, Base(name, kind, model.eval(), tokenizer))  # type: ignore[arg-type]


def said(*texts: str, tokens: int = 3) -> list[Generated]:
    """Answers of that many tokens and an end token."""
    return [Generated([1], [5] * tokens + [2], ended=True, text=text) for text in texts]
