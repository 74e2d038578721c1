"""Write the rows of "the life of an assistant": five skills that a small chat model learns in turn.

    python examples/assistant_rows.py FOLDER [TRAIN [DEV [TEST]]]

TRAIN, DEV and TEST are the number of rows of each task, 160, 40 and 40 if they are left out. The
files are named TASK-train.jsonl, TASK-dev.jsonl and TASK-test.jsonl. Rows are conversations of one
question and one answer, and are the same in every run.

    triage    which team handles a message, and how urgent it is: "facilities, high"
    extract   the booking that a message asks for, as JSON
    polite    a blunt sentence, said politely
    products  facts about the six products of a company that does not exist
    tools     the call of a tool that fulfils a request

Every answer is a function of its question, so that it is scored by exact match. No dev or test
question is a train question: their names, places and things occur in no train row, and `products`
asks for the same facts in other words. Choose settings on dev rows, and read test rows once.

All words are written for this project and have its licence.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any


Pair = tuple[str, str]  # a question and its answer
SPLITS = ("train", "dev", "test")

# In each of these, the first words are those of train rows, then follow those of dev and of test.
NAMES = (
    (
        *("Amara", "Bruno", "Chloe", "Dmitri", "Elena", "Farid", "Greta", "Hugo"),
        *("Ines", "Jonas", "Keiko", "Lars", "Mila", "Nadia", "Omar", "Petra"),
    ),
    ("Quentin", "Rosa", "Stefan", "Tara", "Ugo", "Vera"),
    ("Walid", "Xenia", "Yann", "Zora", "Anton", "Bianca"),
)
THINGS = (
    (
        *("quarterly report", "travel receipt", "signed contract", "floor plan", "customer list"),
        *("meeting record", "price sheet", "safety manual", "budget draft", "photo archive"),
        *("delivery schedule", "test result", "design sketch", "supplier address"),
    ),
    ("audit summary", "training video", "stock list", "press release", "parking permit"),
    ("product roadmap", "sample order", "insurance policy", "visitor badge", "energy bill"),
)
PLACES = (
    ("Lisbon", "Oslo", "Nairobi", "Lima", "Kyoto", "Tunis", "Quebec", "Hanoi", "Perth", "Cork"),
    ("Bergen", "Cusco", "Dakar", "Galway", "Hobart"),
    ("Izmir", "Jaipur", "Kigali", "Lyon", "Malmo"),
)
TIMES = (
    ("09:00", "09:30", "10:15", "11:00", "13:00", "14:30", "15:45", "16:00"),
    ("08:30", "10:45", "12:15", "17:00"),
    ("08:45", "11:30", "13:15", "16:30"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

TEAMS = {
    "it": (
        "The laptop of {name} does not start",
        "{name} cannot log in to the mail account",
        "The printer on floor {floor} prints empty pages",
        "The shared drive with the {thing} is not reachable",
    ),
    "facilities": (
        "The heating on floor {floor} stays cold",
        "A window on floor {floor} does not close",
        "The door to the room with the {thing} is stuck",
        "The lamp above the desk of {name} flickers",
    ),
    "finance": (
        "The invoice from {place} was paid twice",
        "{name} asks why the refund for the trip to {place} is missing",
        "We still owe the hotel in {place} the second rate",
        "The cost of the {thing} was booked to the wrong account",
    ),
    "people": (
        "{name} would like to take two weeks of leave",
        "{name} asks how to change the working hours",
        "A new colleague from {place} starts and has no contract yet",
        "{name} wants to know who approves parental leave",
    ),
}
URGENCY = {
    "low": ("It can wait until next week.", "There is no hurry.", "Whenever you have time."),
    "normal": (
        "Please look at it today.",
        "It should be solved by tomorrow.",
        "Please reply soon.",
    ),
    "high": ("Nobody can work until this is solved.", "This is an emergency.", "We need help now."),
}

BOOKINGS = (
    "Hello, this is {name}. Please reserve a room in {place} for {count} people, {day} at {time}.",
    "We are {count} and need a room in {place} on {day}, {time}. Regards, {name}",
    "Could {name} have a room on {day} at {time}? It is in {place}, and {count} will come.",
    "{day}, {time}, {place}: a room for {count}, please. {name}",
    "My name is {name}, I am planning a meeting of {count} in {place}. {day} at {time} would suit.",
)

BLUNT: tuple[Pair, ...] = (
    ("Send me the {thing}.", "Could you please send me the {thing}?"),
    ("I want the {thing} by {day}.", "Would it be possible to have the {thing} by {day}?"),
    ("Where is the {thing}?", "Could you please tell me where the {thing} is?"),
    ("You forgot the {thing}.", "I think the {thing} may have been overlooked."),
    ("The {thing} is wrong.", "I think there may be a mistake in the {thing}."),
    ("Stop changing the {thing}.", "I would be grateful if you did not change the {thing}."),
    ("{name} must fix the {thing}.", "Could {name} please have another look at the {thing}?"),
    ("Call {name} on {day}.", "Could you please call {name} on {day}?"),
)

PRODUCTS = {
    "Velo lamp": ("24 months", "Porto", "39 euros", "amber"),
    "Tarn kettle": ("36 months", "Graz", "54 euros", "green"),
    "Mira scale": ("12 months", "Turin", "27 euros", "white"),
    "Oben radio": ("18 months", "Ghent", "85 euros", "walnut"),
    "Sola heater": ("60 months", "Tampere", "120 euros", "grey"),
    "Kite fan": ("48 months", "Brno", "66 euros", "blue"),
}
ASKED = (  # what is asked about each fact; the last two questions of each are those of dev and test
    (
        *("How long is the warranty of the {}?", "What warranty does the {} have?"),
        *("For how long is the {} under warranty?", "Tell me the warranty period of the {}."),
        *("The {}: how long does its warranty last?", "How many months of warranty has the {}?"),
        *("My {} broke. How long was its warranty?",),
        *("Until when can I claim warranty for a new {}?", "State the warranty of the {}."),
    ),
    (
        *("Where is the {} made?", "In which city is the {} built?"),
        *("Which city does the {} come from?", "Tell me where you make the {}."),
        *("The {}: in which city is it made?", "Where is the factory of the {}?"),
        *("In what city do you assemble the {}?",),
        *("What is the home town of the {}?", "From which city do you ship the {}?"),
    ),
    (
        *("What does the {} cost?", "How much is the {}?"),
        *("What is the price of the {}?", "Tell me the price of the {}."),
        *("The {}: how much does it cost?", "How much do I pay for the {}?"),
        *("For what price do you sell the {}?",),
        *("How expensive is the {}?", "What would a {} cost me?"),
    ),
    (
        *("Which colour does the {} have?", "What colour is the {}?"),
        *("In which colour is the {} sold?", "Tell me the colour of the {}."),
        *("The {}: what is its colour?", "What is the colour of the {}?"),
        *("In what colour does the {} come?",),
        *("How does the {} look, which colour is it?", "Name the colour of the {}."),
    ),
)

TOOLS: tuple[Pair, ...] = (
    ("Wake me at {time} on {day}.", 'alarm(time="{time}", day="{day}")'),
    ("Remind me of the {thing} on {day}.", 'remind(text="{thing}", day="{day}")'),
    ("What will the weather be in {place} on {day}?", 'weather(city="{place}", day="{day}")'),
    ("Write to {name} that the {thing} is ready.", 'mail(to="{name}", about="{thing}")'),
    ("Start a timer of {count} minutes.", "timer(minutes={count})"),
    ("Find me a train to {place} at {time}.", 'train(to="{place}", time="{time}")'),
    ("Call {name} at {time}.", 'call(who="{name}", time="{time}")'),
    ("Put {count} copies of the {thing} on my list.", 'buy(what="{thing}", count={count})'),
)


def slots(split: str, draw: random.Random) -> dict[str, Any]:
    """Draw the words of a row that its split may have."""
    number = SPLITS.index(split)
    return {
        "name": draw.choice(NAMES[number]),
        "thing": draw.choice(THINGS[number]),
        "place": draw.choice(PLACES[number]),
        "time": draw.choice(TIMES[number]),
        "day": draw.choice(DAYS),
        "count": draw.randrange(3 + number, 60, 3),  # other numbers in each split
        "floor": draw.randrange(1 + number, 30, 3),
    }


def triage(split: str, draw: random.Random) -> Pair:
    """Return a message, and the team and urgency that it needs."""
    team, urgency = draw.choice(list(TEAMS)), draw.choice(list(URGENCY))
    message = draw.choice(TEAMS[team]).format(**slots(split, draw))
    asked = f"Teams: {', '.join(TEAMS)}. Urgency: {', '.join(URGENCY)}. Which for this message?"
    return f"{asked}\n\n{message}. {draw.choice(URGENCY[urgency])}", f"{team}, {urgency}"


def extract(split: str, draw: random.Random) -> Pair:
    """Return a message that asks for a booking, and the booking as JSON."""
    words = slots(split, draw)
    booking = {key: words[key] for key in ("name", "place", "day", "time", "count")}
    message = draw.choice(BOOKINGS).format(**words)
    return f"Extract the booking as JSON.\n\n{message}", json.dumps(booking)


def polite(split: str, draw: random.Random) -> Pair:
    """Return a blunt sentence and a polite one."""
    blunt, answer = draw.choice(BLUNT)
    words = slots(split, draw)
    return f"Say this politely: {blunt.format(**words)}", answer.format(**words)


def products(split: str, draw: random.Random) -> Pair:
    """Return a question about a product, and the fact that answers it."""
    product, facts = draw.choice(list(PRODUCTS.items()))
    number = draw.randrange(len(facts))
    *of_train, of_dev, of_test = ASKED[number]
    words = {"train": of_train, "dev": [of_dev], "test": [of_test]}[split]
    polite_end = draw.choice(("", " Thanks.", " A short answer, please."))
    return f"{draw.choice(words).format(product)}{polite_end}", facts[number]


def tools(split: str, draw: random.Random) -> Pair:
    """Return a request, and the call that fulfils it."""
    request, call = draw.choice(TOOLS)
    words = slots(split, draw)
    return f"Answer with a tool call. {request.format(**words)}", call.format(**words)


TASKS: dict[str, Callable[[str, random.Random], Pair]] = {
    function.__name__: function for function in (triage, extract, polite, products, tools)
}


def rows(task: str, split: str, count: int) -> list[dict]:
    """Return `count` rows of a task, no question of them twice."""
    draw = random.Random(f"{task} {split}")
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        question, answer = TASKS[task](split, draw)
        pairs.setdefault(question, answer)
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in pairs.items()
    ]


def main(folder: Path, train: int = 160, dev: int = 40, test: int = 40) -> None:
    """Write the files of all tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        for split, count in zip(SPLITS, (train, dev, test), strict=True):
            lines = [json.dumps(row) + "\n" for row in rows(task, split, count)]
            (folder / f"{task}-{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("train", type=int, nargs="?", default=160)
    parser.add_argument("dev", type=int, nargs="?", default=40)
    parser.add_argument("test", type=int, nargs="?", default=40)
    main(**vars(parser.parse_args()))
