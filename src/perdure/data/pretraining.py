"""Rows that the default model is trained on: questions about sentences, classes, and copying.

They have the words and the sentences of the generated stream (`perdure.data.generated`) but none of
its instructions, prompts or tasks. The stream's answer words occur only in lists to be copied.
"""

import random
from collections.abc import Callable

from perdure.data.rows import Row
from perdure.data.words import (
    COLOURS,
    MANNERS,
    MONTHS,
    NUMBERS,
    PLACES,
    SLOTS,
    THINGS,
    Slots,
    class_of,
    draw_slots,
    sentence,
    vocabulary,
)


QUESTIONS = {
    "person": "who was it ?",
    "manner": "how was it ?",
    "verb": "what did they do ?",
    "number": "how many were there ?",
    "size": "which size ?",
    "colour": "which colour ?",
    "thing": "what are they ?",
    "place": "where was it ?",
    "month": "which month ?",
}
KINDS = {
    "thing": ("which kind of thing ?", THINGS),
    "manner": ("which kind of manner ?", MANNERS),
    "place": ("which kind of place ?", PLACES),
    "month": ("which season ?", MONTHS),
}
WORDS = vocabulary()


def _ask(text: str, question: str, completion: str) -> Row:
    return {
        "prompt": f"read : {text} . question : {question} answer :",
        "completion": f" {completion}",
    }


def _lookup(generator: random.Random, slots: Slots) -> Row:
    """Ask for the word in one slot of a sentence."""
    name = generator.choice(SLOTS)
    return _ask(sentence(slots, with_month=True), QUESTIONS[name], slots[name])


def _kind_in_sentence(generator: random.Random, slots: Slots) -> Row:
    """Ask for the class of the word in one slot of a sentence."""
    name = generator.choice(list(KINDS))
    question, classes = KINDS[name]
    return _ask(sentence(slots, with_month=True), question, class_of(classes, slots[name]))


def _kind_of_word(generator: random.Random, slots: Slots) -> Row:
    """Ask for the class of a word without a sentence."""
    name = generator.choice(list(KINDS))
    question, classes = KINDS[name]
    return _ask(slots[name], question, class_of(classes, slots[name]))


def _counting(generator: random.Random, slots: Slots) -> Row:
    """Ask for the number before or after another, or for the larger one of two numbers."""
    i = NUMBERS.index(slots["number"])
    if generator.random() < 0.5 and 0 < i < len(NUMBERS) - 1:
        side, step = generator.choice([("before", -1), ("after", 1)])
        return _ask(NUMBERS[i], f"which number is {side} it ?", NUMBERS[i + step])
    other = generator.choice([j for j in range(len(NUMBERS)) if j != i])
    pair = f"{NUMBERS[i]} or {NUMBERS[other]}"
    return _ask(pair, "which number is more ?", NUMBERS[max(i, other)])


def _copying(generator: random.Random, slots: Slots) -> Row:
    """Ask for random words of the vocabulary to be repeated, reversed, or for one of them."""
    words = generator.sample(WORDS, generator.randint(2, 4))
    verb, answer = generator.choice(
        [
            ("repeat", words),
            ("reverse", words[::-1]),
            ("say first word", words[:1]),
            ("say last word", words[-1:]),
        ]
    )
    return {
        "prompt": f"{verb} : {' '.join(words)} . answer :",
        "completion": f" {' '.join(answer)}",
    }


def _odd_one_out(generator: random.Random, slots: Slots) -> Row:
    """Ask which of four words is of another class than the others."""
    kind, other = generator.sample(list(THINGS), 2)
    words = [*generator.sample(THINGS[kind], 3), generator.choice(THINGS[other])]
    odd = words[-1]
    if generator.random() < 0.5:
        odd = words[-1] = generator.choice(COLOURS)
    generator.shuffle(words)
    return _ask(" ".join(words), "which word is not the same kind ?", odd)


MAKERS: tuple[Callable[[random.Random, Slots], Row], ...] = (
    _lookup,
    _kind_in_sentence,
    _kind_of_word,
    _copying,
    _lookup,
    _kind_in_sentence,
    _odd_one_out,
    _counting,
    _kind_in_sentence,
    _copying,
)


def pretraining_rows(limit: int, seed: int = 0) -> list[Row]:
    """Return `limit` rows; the makers take turns, so that the mixture is the same throughout."""
    generator = random.Random(f"perdure pretraining {seed}")
    return [MAKERS[i % len(MAKERS)](generator, draw_slots(generator)) for i in range(limit)]
