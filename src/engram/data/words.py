"""The closed vocabulary of the generated text, and the sentence that all of it is about.

A sentence has nine slots, each drawn independently: *who* did something, in what *manner*, to how
*many* *things* of what *size* and *colour*, *where* and in which *month*. Every task asks about one
slot, so two tasks read the same sentences and differ only in the question and its answer words.
"""

import random


PEOPLE = ["anna", "ben", "carla", "david", "emma", "felix", "grace", "henry", "iris", "jack", "kate", "liam", "maria", "nina", "oscar", "paula", "quinn", "rosa", "sam", "tina", "victor", "wendy", "yusuf", "zoe", "arthur", "bella", "cedric", "diana", "edgar", "fiona", "george", "hanna"]
VERBS = ["bought", "sold", "found", "lost", "packed", "carried", "painted", "washed", "counted", "wanted", "hid", "borrowed", "moved", "stored", "dropped", "wrapped", "cleaned", "ordered"]
SIZES = ["tiny", "small", "medium", "large", "huge", "narrow", "wide", "short", "long", "round"]
COLOURS = ["red", "blue", "green", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "golden"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
MONTHS = {
    "winter": ["december", "january", "february"],
    "spring": ["march", "april", "may"],
    "summer": ["june", "july", "august"],
    "autumn": ["september", "october", "november"],
}
THINGS = {
    "instruments": ["trumpets", "violins", "drums", "flutes", "guitars", "pianos", "harps", "cellos", "bells", "horns"],
    "foods": ["apples", "cakes", "onions", "cookies", "carrots", "pies", "lemons", "noodles", "olives", "pancakes"],
    "plants": ["roses", "tulips", "ferns", "oaks", "daisies", "shrubs", "lilies", "pines", "orchids", "cactuses"],
    "animals": ["horses", "cats", "rabbits", "owls", "ducks", "goats", "foxes", "turtles", "parrots", "mice"],
    "tools": ["hammers", "saws", "drills", "ladders", "wrenches", "shovels", "axes", "pliers", "screws", "brushes"],
    "clothes": ["shirts", "coats", "hats", "gloves", "scarves", "socks", "boots", "skirts", "jackets", "belts"],
}
MANNERS = {
    "smiling": ["happily", "gladly", "cheerfully", "merrily", "joyfully", "proudly", "eagerly", "brightly"],
    "crying": ["sadly", "gloomily", "tearfully", "unhappily", "sorrowfully", "mournfully", "glumly", "bleakly"],
    "shouting": ["angrily", "furiously", "crossly", "bitterly", "rudely", "harshly", "fiercely", "grumpily"],
    "resting": ["calmly", "quietly", "gently", "patiently", "slowly", "softly", "peacefully", "lazily"],
}
PLACES = {
    "rooms": ["kitchen", "bedroom", "attic", "cellar", "hallway", "bathroom", "library", "nursery"],
    "streets": ["market", "bakery", "station", "museum", "theatre", "bank", "hotel", "square"],
    "lands": ["forest", "meadow", "valley", "desert", "mountain", "field", "jungle", "cave"],
    "shores": ["harbour", "lake", "river", "beach", "island", "pond", "bay", "lagoon"],
}

# What the quickstart's tasks answer with. The pre-training text only ever copies these words.
TOPICS = dict(
    zip(THINGS, ["music", "cooking", "garden", "wildlife", "repair", "fashion"], strict=True),
)
MOODS = dict(zip(MANNERS, ["joy", "sorrow", "anger", "peace"], strict=True))
SCENES = dict(zip(PLACES, ["home", "town", "country", "water"], strict=True))
AMOUNTS = ["few", "some", "several", "plenty"]

# Words of the questions and instructions, and a few that only serve as copying material.
FUNCTION = ["a", "all", "an", "and", "answer", "are", "at", "before", "after", "belong", "by", "colour", "copy", "did", "do", "first", "from", "has", "how", "in", "is", "it", "its", "kind", "label", "last", "many", "more", "month", "name", "no", "not", "number", "of", "on", "or", "one", "place", "question", "read", "repeat", "reverse", "same", "say", "season", "second", "size", "sort", "start", "stop", "than", "that", "the", "them", "there", "they", "thing", "third", "this", "to", "together", "twice", "was", "were", "what", "when", "where", "which", "who", "why", "with", "word", "words", "write", "yes", "mood", "topic", "scene", "amount", "manner", "twenty", ":", ".", "?", ","]
COPIED = ["book", "chair", "clock", "cloud", "cup", "dance", "door", "dream", "engine", "evening", "fire", "floor", "friend", "game", "gate", "glass", "gold", "hill", "hope", "ice", "idea", "job", "key", "lamp", "leaf", "letter", "light", "line", "list", "lock", "machine", "map", "message", "minute", "mirror", "money", "moon", "morning", "mouth", "news", "night", "noise", "note", "ocean", "page", "paper", "path", "pen", "picture", "plan", "plate", "pocket", "poem", "price", "queen", "rain", "ring", "road", "rope", "rule", "salt", "sand", "school", "seed", "shade", "shape", "shell", "ship", "silver", "sky", "sleep", "smoke", "snow", "song", "sound", "spoon", "star", "stone", "storm", "story", "string", "sugar", "sun", "table", "tale", "tea", "tent", "thread", "thunder", "ticket", "tower", "town", "toy", "train", "tree", "truth", "village", "voice", "wall", "watch", "wave", "week", "wheel", "wind", "window", "wing", "winner", "wool", "world", "year"]

Slots = dict[str, str]
SLOTS = ["person", "manner", "verb", "number", "size", "colour", "thing", "place", "month"]


def _members(classes: dict[str, list[str]]) -> list[str]:
    return [word for words in classes.values() for word in words]


def class_of(classes: dict[str, list[str]], word: str) -> str:
    """The name of the class that has `word`."""
    return next(name for name, words in classes.items() if word in words)


def vocabulary() -> list[str]:
    """Every word of the generated text once, sorted."""
    groups = [PEOPLE, VERBS, SIZES, COLOURS, NUMBERS, FUNCTION, COPIED, AMOUNTS, ["months"]]
    for classes in (MONTHS, THINGS, MANNERS, PLACES):
        groups += [list(classes), _members(classes)]
    groups += [list(labels.values()) for labels in (TOPICS, MOODS, SCENES)]
    return sorted({word for group in groups for word in group})


def draw_slots(generator: random.Random) -> Slots:
    """One word for each slot. Classes are drawn before their words, so classes are balanced."""
    of_class = {
        name: generator.choice(generator.choice(list(classes.values())))
        for name, classes in [
            ("thing", THINGS), ("manner", MANNERS), ("place", PLACES), ("month", MONTHS),
        ]
    }  # fmt: skip
    flat = {
        name: generator.choice(words)
        for name, words in [
            ("person", PEOPLE), ("verb", VERBS), ("number", NUMBERS), ("size", SIZES),
            ("colour", COLOURS),
        ]
    }  # fmt: skip
    return of_class | flat


def sentence(slots: Slots, with_month: bool = False) -> str:
    """`anna gladly sold seven small red drums in the kitchen`, and perhaps `in may`."""
    words = "{person} {manner} {verb} {number} {size} {colour} {thing} in the {place}"
    return (words + " in {month}" if with_month else words).format(**slots)
