"""Recipes that make the fifteen Long Sequence tasks from their datasets on the hub.

A prompt has the shape of those in the published form: an instruction with the options, the text,
and "Answer:". The wording of the instructions is our own. The columns, splits and label names were
confirmed from the datasets' cards and from code that reads them, as each comment says; none was
loaded from the hub when this was written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """The recipe of one task.

    Args:
        test: the dataset, its config, and the split of the test rows. The train rows come from the
            dataset's split `train`.
        instruction: the first line of a prompt, before the options.
        body: the template of the lines between the first and the last.
        answers: the answer for each label, in the dataset's order.
        options: the answers in the order in which prompts show them, if it differs from `answers`.
        label: the column of the labels.
    """

    test: str
    instruction: str
    body: str
    answers: Mapping[Any, str]
    options: tuple[str, ...] = ()
    label: str = "label"

    def prompt(self) -> str:
        """Return the template of a prompt."""
        options = ", ".join(self.shown())
        return f"{self.instruction} Option: {options}.\n{self.body}\nAnswer:"

    def shown(self) -> tuple[str, ...]:
        """Return the options in the order in which prompts show them."""
        return self.options or tuple(self.answers.values())


def same(*names: str) -> dict[str, str]:
    """Return answers that are equal to their labels."""
    return {name: name for name in names}


FEELINGS = ("very negative", "negative", "neutral", "positive", "very positive")
STARS = ("1 star", "2 star", "3 stars", "4 stars", "5 stars")
RELATION = "How are the two sentences related in their meaning?"
SENTIMENT = "Which sentiment does this review express?"
TOPIC = "Which topic is this text about?"
SENTENCES = "sentence 1: {premise}\nsentence 2: {hypothesis}"

# The test splits of GLUE and SuperGLUE have no labels, so their validation split serves as test.
RECIPES = {
    # confirmed: its card
    "dbpedia": Recipe(
        "fancyzhx/dbpedia_14:dbpedia_14:test",
        "Which kind of thing does this text describe?",
        "Title: {title}\nText: {content}",
        {
            "Company": "Company",
            "EducationalInstitution": "Educational Institution",
            "Artist": "Artist",
            "Athlete": "Athlete",
            "OfficeHolder": "Office Holder",
            "MeanOfTransportation": "Mean of Transportation",
            "Building": "Building",
            "NaturalPlace": "Natural Place",
            "Village": "Village",
            "Animal": "Animal",
            "Plant": "Plant",
            "Album": "Album",
            "Film": "Film",
            "WrittenWork": "Written Work",
        },
    ),
    # confirmed: its list of files, and code that reads these columns (class_index is 1 to 5)
    "amazon": Recipe(
        "yassiracharki/Amazon_Reviews_for_Sentiment_Analysis_fine_grained_5_classes:test",
        SENTIMENT,
        "Title: {review_title}\nText: {review_text}",
        dict(enumerate(FEELINGS, 1)),
        label="class_index",
    ),
    # confirmed: the commit that made it Parquet, and the loading script before that
    "yahoo": Recipe(
        "community-datasets/yahoo_answers_topics:yahoo_answers_topics:test",
        TOPIC,
        "Title: {question_title}\nQuestion: {question_content}\nAnswer: {best_answer}",
        same(
            *("Society & Culture", "Science & Mathematics", "Health", "Education & Reference"),
            *("Computers & Internet", "Sports", "Business & Finance", "Entertainment & Music"),
            *("Family & Relationships", "Politics & Government"),
        ),
        label="topic",
    ),
    # confirmed: its card
    "agnews": Recipe(
        "fancyzhx/ag_news:test",
        TOPIC,
        "Text: {text}",
        same("World", "Sports", "Business") | {"Sci/Tech": "Science or Technology"},
    ),
    # confirmed: the commit that made it Parquet
    "yelp": Recipe(
        "Yelp/yelp_review_full:yelp_review_full:test",
        SENTIMENT,
        "Text: {text}",
        dict(zip(STARS, FEELINGS, strict=True)),
    ),
    # confirmed: its card
    "imdb": Recipe(
        "stanfordnlp/imdb:plain_text:test",
        SENTIMENT,
        "Text: {text}",
        {"neg": "Bad", "pos": "Good"},
        ("Good", "Bad"),
    ),
    # confirmed, with the next three: its card, and the TensorFlow catalogue's copy of it
    "sst-2": Recipe(
        "nyu-mll/glue:sst2:validation",
        SENTIMENT,
        "Text: {sentence}",
        {"negative": "Bad", "positive": "Good"},
        ("Good", "Bad"),
    ),
    "mnli": Recipe(
        "nyu-mll/glue:mnli:validation_matched",
        RELATION,
        SENTENCES,
        same("entailment", "neutral", "contradiction"),
        ("neutral", "entailment", "contradiction"),
    ),
    "rte": Recipe(
        "nyu-mll/glue:rte:validation",
        RELATION,
        "sentence 1: {sentence1}\nsentence 2: {sentence2}",
        {"entailment": "entailment", "not_entailment": "contradiction"},
        ("contradiction", "entailment"),
    ),
    "qqp": Recipe(
        "nyu-mll/glue:qqp:validation",
        "Do these two questions ask for the same thing?",
        "first sentence: {question1}\nsecond sentence: {question2}",
        {"not_duplicate": "False", "duplicate": "True"},
    ),
    # confirmed, with the next four: the TensorFlow catalogue's copy of the card of super_glue, and
    # code that loads aps/super_glue by these names or takes its Parquet files
    "cb": Recipe(
        "aps/super_glue:cb:validation",
        RELATION,
        SENTENCES,
        same("entailment", "contradiction", "neutral"),
    ),
    "wic": Recipe(
        "aps/super_glue:wic:validation",
        "Does the word mean the same in both sentences?",
        "word: {word}\n{sentence1}\n{sentence2}",
        same("False", "True"),
        ("True", "False"),
    ),
    "copa": Recipe(
        "aps/super_glue:copa:validation",
        "Which of the two sentences fits better?",
        'What is the {question} of "{premise}"?\nA: {choice1}\nB: {choice2}',
        {"choice1": "A", "choice2": "B"},
    ),
    "boolqa": Recipe(
        "aps/super_glue:boolq:validation",
        "Does the passage answer the question with yes?",
        "question: {question}\npassage: {passage}",
        same("False", "True"),
        ("True", "False"),
    ),
    "multirc": Recipe(
        "aps/super_glue:multirc:validation",
        "Is the candidate a right answer to the question about the paragraph?",
        "paragraph: {paragraph}\nquestion: {question}\ncandidate answer: {answer}",
        same("False", "True"),
    ),
}
