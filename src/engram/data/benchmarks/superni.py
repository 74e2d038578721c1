"""The SuperNI benchmark: fifteen tasks of Super-NaturalInstructions in two published orders.

Dialogue, extraction, question answering, summarization and sentiment, three tasks each. All are
answered by generation and scored by ROUGE-L but those of `EXACT`, whose score is accuracy. A prompt
is the task's definition and one input, with the marks that the published rows have.

In the folder form dev is test: the same rows in the same order, for all fifteen tasks (measured);
train shares no prompt with them. So nothing may be chosen on dev and reported on test. The answers
of the classification tasks are their first letters; in task875 "s" stands for two emotions.
"""

from collections.abc import Sequence

from engram.data.rows import Row


ORDERS = {
    "superni_1": (
        *("task1572", "task363", "task1290", "task181", "task002", "task1510", "task639"),
        *("task1729", "task073", "task1590", "task748", "task511", "task591", "task1687"),
        "task875",
    ),
    "superni_2": (
        *("task748", "task073", "task1590", "task639", "task1572", "task1687", "task591"),
        *("task363", "task1510", "task1729", "task181", "task511", "task002", "task1290"),
        "task875",
    ),
}
TASKS = frozenset(ORDERS["superni_1"])
EXACT = frozenset({"task363", "task875", "task195"})
# Answered by their first letter in the folder form.
LETTERS = frozenset({"task363", "task875", "task1687"})

# The dataset has a file a task, train/<name>_train.jsonl (confirmed by its commits), and the
# columns task_name, definition, inputs and targets (confirmed by code that reads it). It holds the
# tasks of the default split's train_tasks.txt, where these twelve stand (confirmed).
HUB = "Muennighoff/natural-instructions"
NAMES = {
    "task002": "task002_quoref_answer_generation",
    "task073": "task073_commonsenseqa_answer_generation",
    "task1290": "task1290_xsum_summarization",
    "task1510": "task1510_evalution_relation_extraction",
    "task1572": "task1572_samsum_summary",
    "task1590": "task1590_diplomacy_text_generation",
    "task1729": "task1729_personachat_generate_next",
    "task181": "task181_outcome_extraction",
    "task363": "task363_sst2_polarity_classification",
    "task591": "task591_sciq_answer_generation",
    "task639": "task639_multi_woz_user_utterance_generation",
    "task875": "task875_emotion_classification",
}
# The other three are not in it. This owner has a dataset a task, by the task's name, with splits
# train, valid and test and the columns input (definition, examples and input in one text) and
# output, a list (confirmed for several of its tasks; that these three are there is not confirmed).
OWNER = "Lots-of-LoRAs"
APART = {
    "task511": "task511_reddit_tifu_long_text_summarization",
    "task748": "task748_glucose_reverse_cause_event_detection",
    "task1687": "task1687_sentiment140_classification",
}


def metric(task: str) -> str:
    return "exact_match" if task in EXACT else "rouge_l"


def row(
    task: str, definition: str, text: str, targets: Sequence[str], references: bool = False
) -> Row:
    """One row in the shape of the published ones; the first target is the answer.

    With `references` the others are kept, which are as right when a model is scored.
    """
    answers = list(dict.fromkeys(said[:1] if task in LETTERS else said for said in targets))
    made = {"prompt": f"[INS] {definition}\n [IN] {text}\n [OUT] ", "completion": answers[0]}
    return made | {"references": answers[1:]} if references and answers[1:] else made


def unpacked(text: str) -> tuple[str, str]:
    """Definition and input out of one text that holds both, with examples between them."""
    definition, _, rest = text.removeprefix("Definition: ").partition("\n\n")
    _, _, asked = rest.rpartition("complete the following example -\nInput: ")
    return definition, asked.removesuffix("\nOutput:")
