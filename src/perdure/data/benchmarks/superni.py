"""The SuperNI benchmark: fifteen tasks of Super-NaturalInstructions in two published orders.

There are three tasks each of dialogue, extraction, question answering, summarization and sentiment.
All are answered by generation and scored by ROUGE-L, except those in `EXACT`, which are scored by
accuracy. A prompt has the task's definition and one input, with the markers of the published rows.

In the folder form, dev and test are the same rows in the same order for all fifteen tasks
(measured), while train shares no prompt with them. So results on test must not be reported for
anything that was chosen on dev. The answers of the classification tasks are abbreviated to their
first letters; in task875, "s" stands for two emotions.
"""

from collections.abc import Sequence

from perdure.data.rows import Row


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
# Their answers are abbreviated to the first letter in the folder form.
LETTERS = frozenset({"task363", "task875", "task1687"})

# The dataset has one file per task, train/<name>_train.jsonl (confirmed by its commits), with the
# columns task_name, definition, inputs and targets (confirmed by code that reads it). It holds the
# tasks of the default split's train_tasks.txt, which lists these twelve (confirmed).
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
# The other three are not in it. This owner has one dataset per task, named after the task, with the
# splits train, valid and test and the columns input (definition, examples and input in one text)
# and output, a list. This is confirmed for several of its tasks, but not that these three exist.
OWNER = "Lots-of-LoRAs"
APART = {
    "task511": "task511_reddit_tifu_long_text_summarization",
    "task748": "task748_glucose_reverse_cause_event_detection",
    "task1687": "task1687_sentiment140_classification",
}


def metric(task: str) -> str:
    """Return the metric of a task."""
    return "exact_match" if task in EXACT else "rouge_l"


def row(
    task: str, definition: str, text: str, targets: Sequence[str], references: bool = False
) -> Row:
    """Make a row in the shape of the published rows, with the first target as its answer.

    With `references`, the other targets are kept as further correct answers for scoring.
    """
    answers = list(dict.fromkeys(target[:1] if task in LETTERS else target for target in targets))
    row = {"prompt": f"[INS] {definition}\n [IN] {text}\n [OUT] ", "completion": answers[0]}
    return row | {"references": answers[1:]} if references and answers[1:] else row


def unpacked(text: str) -> tuple[str, str]:
    """Return the definition and the input from a text that has examples between them."""
    definition, _, rest = text.removeprefix("Definition: ").partition("\n\n")
    _, _, task_input = rest.rpartition("complete the following example -\nInput: ")
    return definition, task_input.removesuffix("\nOutput:")
