"""The closed vocabulary of the generated text, and the sentence that it describes.

A sentence has nine slots, each drawn independently: *who* did something, in what *manner*, to how
*many* *things* of what *size* and *colour*, *where* and in which *month*. Each task asks about one
slot, so all tasks read the same sentences and differ only in the question and its answer words.
"""

import random


def words(text: str) -> list[str]:
    """Split `text` into its words."""
    return text.split()


PEOPLE = words(
    """
    anna ben carla david emma felix grace henry iris jack kate liam maria nina oscar paula quinn
    rosa sam tina victor wendy yusuf zoe arthur bella cedric diana edgar fiona george hanna
    """
)
VERBS = words(
    """
    bought sold found lost packed carried painted washed counted wanted hid borrowed moved stored
    dropped wrapped cleaned ordered
    """
)
SIZES = words("tiny small medium large huge narrow wide short long round")
COLOURS = words("red blue green yellow orange purple pink brown black white grey golden")
NUMBERS = words(
    """
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen
    """
)
MONTHS = {
    "winter": words("december january february"),
    "spring": words("march april may"),
    "summer": words("june july august"),
    "autumn": words("september october november"),
}
THINGS = {
    "instruments": words("trumpets violins drums flutes guitars pianos harps cellos bells horns"),
    "foods": words("apples cakes onions cookies carrots pies lemons noodles olives pancakes"),
    "plants": words("roses tulips ferns oaks daisies shrubs lilies pines orchids cactuses"),
    "animals": words("horses cats rabbits owls ducks goats foxes turtles parrots mice"),
    "tools": words("hammers saws drills ladders wrenches shovels axes pliers screws brushes"),
    "clothes": words("shirts coats hats gloves scarves socks boots skirts jackets belts"),
}
MANNERS = {
    "smiling": words("happily gladly cheerfully merrily joyfully proudly eagerly brightly"),
    "crying": words("sadly gloomily tearfully unhappily sorrowfully mournfully glumly bleakly"),
    "shouting": words("angrily furiously crossly bitterly rudely harshly fiercely grumpily"),
    "resting": words("calmly quietly gently patiently slowly softly peacefully lazily"),
}
PLACES = {
    "rooms": words("kitchen bedroom attic cellar hallway bathroom library nursery"),
    "streets": words("market bakery station museum theatre bank hotel square"),
    "lands": words("forest meadow valley desert mountain field jungle cave"),
    "shores": words("harbour lake river beach island pond bay lagoon"),
}

# Answer words of the quickstart's tasks. The pre-training text has them only in lists to copy.
TOPICS = dict(zip(THINGS, words("music cooking garden wildlife repair fashion"), strict=True))
MOODS = dict(zip(MANNERS, words("joy sorrow anger peace"), strict=True))
SCENES = dict(zip(PLACES, words("home town country water"), strict=True))
AMOUNTS = words("few some several plenty")

# Words of the questions and instructions, and a few that are only there to be copied.
FUNCTION = words(
    """
    a all an and answer are at before after belong by colour copy did do first from has how in is it
    its kind label last many more month name no not number of on or one place question read repeat
    reverse same say season second size sort start stop than that the them there they thing third
    this to together twice was were what when where which who why with word words write yes mood
    topic scene amount manner twenty : . ? ,
    """
)
COPIED = words(
    """
    book chair clock cloud cup dance door dream engine evening fire floor friend game gate glass
    gold hill hope ice idea job key lamp leaf letter light line list lock machine map message minute
    mirror money moon morning mouth news night noise note ocean page paper path pen picture plan
    plate pocket poem price queen rain ring road rope rule salt sand school seed shade shape shell
    ship silver sky sleep smoke snow song sound spoon star stone storm story string sugar sun table
    tale tea tent thread thunder ticket tower town toy train tree truth village voice wall watch
    wave week wheel wind window wing winner wool world year
    """
)

Slots = dict[str, str]
SLOTS = words("person manner verb number size colour thing place month")


def _members(classes: dict[str, list[str]]) -> list[str]:
    return [word for members in classes.values() for word in members]


def class_of(classes: dict[str, list[str]], word: str) -> str:
    """Return the name of the class that contains `word`."""
    return next(name for name, members in classes.items() if word in members)


def vocabulary() -> list[str]:
    """Return every word of the generated text once, sorted."""
    groups = [PEOPLE, VERBS, SIZES, COLOURS, NUMBERS, FUNCTION, COPIED, AMOUNTS, ["months"]]
    for classes in (MONTHS, THINGS, MANNERS, PLACES):
        groups += [list(classes), _members(classes)]
    groups += [list(labels.values()) for labels in (TOPICS, MOODS, SCENES)]
    return sorted({word for group in groups for word in group})


def draw_slots(generator: random.Random) -> Slots:
    """Draw a word for each slot: first the class, then a word in it, to balance the classes."""
    of_class = {
        name: generator.choice(generator.choice(list(classes.values())))
        for name, classes in [
            ("thing", THINGS), ("manner", MANNERS), ("place", PLACES), ("month", MONTHS),
        ]
    }  # fmt: skip
    flat = {
        name: generator.choice(choices)
        for name, choices in [
            ("person", PEOPLE), ("verb", VERBS), ("number", NUMBERS), ("size", SIZES),
            ("colour", COLOURS),
        ]
    }  # fmt: skip
    return of_class | flat


def sentence(slots: Slots, with_month: bool = False) -> str:
    """Return a sentence such as `anna gladly sold seven small red drums in the kitchen in may`.

    The month is left out unless `with_month` is set.
    """
    text = "{person} {manner} {verb} {number} {size} {colour} {thing} in the {place}"
    return (text + " in {month}" if with_month else text).format(**slots)
