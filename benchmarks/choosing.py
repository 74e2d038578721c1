"""What to take for which model and data, each line with its number and the file that has it.

`tables.py` writes the lines to docs/choosing.md and to the file that `perdure methods --recommend`
prints.
"""

import json
from itertools import groupby
from pathlib import Path
from textwrap import wrap
from typing import Any

from table_text import difference_text, markdown

from perdure.comparison.summary import difference, lost, mark_what_differs, score
from perdure.measure.statistics import mean


RESULTS = Path(__file__).parent / "results"
CHAT = "smollm2_assistant_screen"  # the records of the chat model that the lines below use
CARRIED = "smollm2_assistant"  # those of its lines that were run in three orders
CONFIRMED = "smollm2_assistant_confirm"  # the candidate and four others in six orders
ELSEWHERE = "smollm2_superni_confirm"  # the candidate and two others in six orders of other tasks
THIRD = "smollm2_standard_cl"  # seven lines in three orders of further tasks
CHEAPER = "[replay, kl_base]"
APART = "smollm2_assistant_merge"  # the records of its merged experts
WITHOUT_ROWS = (
    *("ewc", "wise_ft_base", "wise_ft", "finch", "self_replay", "lwf", "kl_base"),
    "kif_rehearsal_free",
)
LASTING = "{preset: lasting}"  # the keywords of `kif_kl_lasting`
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")
CHAT_MODEL, ENCODER, EITHER = "A chat model", "An encoder that classifies", "Either"
IN_WORDS = "no method"  # how what to take begins, if it is no setting
Cells = dict[Any, dict[str, Any]]


class Results:
    """The records of a result file, by method."""

    def __init__(self, name: str):
        self.name = name
        records = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["records"]
        self.methods: dict[str, Cells] = {}
        for record in records:
            cells = self.methods.setdefault(record["method"], {})
            cells[record["order"], record["seed"]] = record

    def known(self, method: str, key: str = "overall") -> dict[Any, float]:
        cells = self.methods[method]
        return {pair: r[key] for pair, r in cells.items() if r.get(key) is not None}

    def orders(self, method: str) -> str:
        """In how many orders of the tasks a method was run, in words."""
        count = len({order for order, _ in self.methods[method]})
        return f"{NUMBERS[count]} order{'s' * (count > 1)}"

    def op(self, method: str) -> str:
        """The mean OP of a method over the orders."""
        return f"{score(self.known(method))['mean']:.3f}"

    def against(self, method: str, other: str) -> str:
        """The difference of two methods' OP, with its interval if there are three orders."""
        return difference_text(difference(self.known(method), self.known(other)))

    def time(self, method: str, other: str) -> str:
        """The time of learning, divided by that of another method in the same cells."""
        ours, theirs = self.methods[method], self.methods[other]
        return f"{times([(ours[pair], theirs[pair]) for pair in ours if pair in theirs]):.2f}"

    def kl(self, method: str) -> str:
        """The mean KL from the base, in nats per token."""
        return f"{mean([*self.known(method, 'kl').values()]):.2f}"

    def kept(self, method: str) -> str:
        """What is left of general ability: how many of the base's checks fell, and the KL."""
        losses = lost([*self.methods[method].values()])
        return f"{losses['fell']} of {losses['passed_by_reference']} checks fell"

    def scores(self, method: str) -> str:
        """The OP of a method, and what is left of general ability."""
        return f"OP {self.op(method)}, KL {self.kl(method)}, {self.kept(method)}"


def times(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> float:
    """The CPU seconds of learning relative to those of the plain run, the mean over the cells.

    These are `cpu_seconds`, in the cells that have them. Others only have `seconds`, those of the
    training steps: a plain run is taken to need as many beside them as where both are known.
    """
    beside = mean([p["cpu_seconds"] - p["seconds"] for _, p in pairs if "cpu_seconds" in p]) or 0.0
    ratios = [
        ours["cpu_seconds"] / plain.get("cpu_seconds", plain["seconds"] + beside)
        for ours, plain in pairs
        if "cpu_seconds" in ours
    ]
    return mean(ratios or [ours["seconds"] / plain["seconds"] for ours, plain in pairs]) or 0.0


def lines() -> list[dict[str, Any]]:
    """The lines: `kind` of model, `when`, `take`, `number`, `because` and `files`.

    `number` is what decides, in short, and `because` the numbers beside it. Of each kind of model
    the first line is what to begin with.
    """
    return [*chat_lines(), *encoder_lines(), *either_lines()]


def chat_lines() -> list[dict[str, Any]]:
    """What was measured on the chat model."""
    carried, orders, screen = Results(CARRIED), Results("chat_orders"), Results(CHAT)
    plain = "sequential, training.learning_rate=0.002"
    without_rows = {name: screen.op(name) for name in WITHOUT_ROWS}
    return [
        kept_line(Results(CONFIRMED), Results(ELSEWHERE), Results(THIRD), carried),
        cheaper_line(Results(CONFIRMED), Results(ELSEWHERE), Results(THIRD), carried, orders),
        line(
            CHAT_MODEL,
            "old rows, and skills matter more than general ability",
            "[replay, {kl_base: {strength: 0.05}}]",
            f"OP {screen.op('replay_kl_weak')}, KL {screen.kl('replay_kl_weak')}; [replay, "
            f"kl_base] {screen.op('replay_kl')} and {screen.kl('replay_kl')}, the default "
            f"{screen.op('kif_kl_lasting')} and {screen.kl('kif_kl_lasting')} (one order)",
            f"five skills, one order of a screen: OP {screen.op('replay_kl_weak')}, KL "
            f"{screen.kl('replay_kl_weak')}; the default {screen.op('kif_kl_lasting')} with "
            f"{screen.kl('kif_kl_lasting')}, [replay, kl_base] {screen.op('replay_kl')} with "
            f"{screen.kl('replay_kl')}, replay alone {screen.op('replay')} with "
            f"{screen.kl('replay')}, plain fine-tuning {screen.op(plain)} with "
            f"{screen.kl(plain)}, all rows at once {screen.op('joint')}",
            screen,
        ),
        line(
            CHAT_MODEL,
            "old rows: rows of a general kind in place of the anchor?",
            CHEAPER,
            f"OP {screen.op('replay_kl')}, KL {screen.kl('replay_kl')}; general rows in its place "
            f"{screen.op('general_10')} and {screen.kl('general_10')} (one order)",
            f"five skills, one order of a screen: [replay, kl_base] {screen.scores('replay_kl')}; "
            f"replay and general rows, a tenth as many as new ones, {screen.scores('general_10')}; "
            f"half as many {screen.scores('general_50')}. Both together were not measured",
            screen,
        ),
        line(
            CHAT_MODEL,
            "no old row may be kept",
            f"{IN_WORDS}: keep a few rows of each task",
            f"OP at most {max(without_rows.values())} of {NUMBERS[len(without_rows)]} methods; "
            f"with 60 rows replay has {screen.op('replay')} (one order)",
            "five skills, one order of a screen: each line without old rows lost three or four of "
            "four old skills: "
            + ", ".join(f"{name} OP {op}" for name, op in without_rows.items())
            + f"; replay of 60 rows {screen.op('replay')}",
            screen,
        ),
        apart_line(carried),
    ]


def kept_line(
    confirmed: Results, elsewhere: Results, third: Results, carried: Results
) -> dict[str, Any]:
    """What six orders of two streams, and three of a third, say of the candidate."""
    ours = "kif_kl_lasting"
    others = {
        "replay_kl": CHEAPER,
        "replay_kl_4x": "[{replay: {ratio: 2.0}}, kl_base] (as many old rows)",
        "replay": "replay alone",
    }
    return line(
        CHAT_MODEL,
        "some rows of each old task may be kept",
        f"[{{recurrent_kif: {LASTING}}}, kl_base]",
        f"{confirmed.scores(ours)}; replay alone {confirmed.scores('replay')}. On SuperNI "
        f"{elsewhere.scores(ours)}; replay alone {elsewhere.scores('replay')}. On Standard CL "
        f"{third.scores(ours)}; replay alone {third.scores('replay')}",
        f"five skills, {confirmed.orders(ours)}: {confirmed.scores(ours)}. Its OP minus "
        f"{_compared(confirmed, ours, others)}. Five SuperNI tasks, {elsewhere.orders(ours)}: "
        f"{elsewhere.scores(ours)}. Its OP minus {_compared(elsewhere, ours, others)}. Five tasks "
        f"of Standard CL, {third.orders(ours)}: {third.scores(ours)}. Its OP minus "
        f"{_compared(third, ours, others)}. Plain fine-tuning has OP {carried.op('sequential')} in "
        f"{carried.orders('sequential')} of the five skills, and {third.op('sequential')} on "
        "Standard CL",
        confirmed,
        elsewhere,
        third,
        carried,
    )


def _compared(results: Results, ours: str, others: dict[str, str]) -> str:
    """The difference of a line's OP and that of each other one that was run."""
    known = {name: what for name, what in others.items() if name in results.methods}
    differences = [difference(results.known(ours), results.known(other)) for other in known]
    mark_what_differs(differences)
    return "; ".join(
        f"that of {what}: {difference_text(one)}"
        for what, one in zip(known.values(), differences, strict=True)
    )


def cheaper_line(
    confirmed: Results, elsewhere: Results, third: Results, carried: Results, orders: Results
) -> dict[str, Any]:
    """What a cheaper anchored line keeps."""
    cheaper, longer = "replay_kl", "kif_kl_lasting"
    return line(
        CHAT_MODEL,
        "old rows, and learning must be cheaper",
        CHEAPER,
        f"{confirmed.time(cheaper, longer)} of the time; {confirmed.scores(cheaper)}. On SuperNI "
        f"{elsewhere.scores(cheaper)}. On Standard CL {third.scores(cheaper)}",
        f"five skills, {confirmed.orders(cheaper)}, {confirmed.time(cheaper, longer)} of the CPU "
        f"seconds of the default: {confirmed.scores(cheaper)}. Five SuperNI tasks, "
        f"{elsewhere.orders(cheaper)}, {elsewhere.time(cheaper, longer)} of the CPU seconds: "
        f"{elsewhere.scores(cheaper)}. Five tasks of Standard CL, {third.orders(cheaper)}: "
        f"{third.scores(cheaper)}. Three tasks, three orders: OP {orders.op(cheaper)}, "
        f"{orders.kept(cheaper)}; plain fine-tuning {orders.op('sequential')}, "
        f"{orders.kept('sequential')}. Five skills, {carried.orders('sequential')}: plain "
        f"fine-tuning {carried.scores('sequential')}",
        confirmed,
        elsewhere,
        third,
        orders,
        carried,
    )


def apart_line(carried: Results) -> dict[str, Any]:
    """What merging experts of the chat model gives."""
    apart = Results(APART)
    rules = [name for name in apart.methods if name not in ("apart", "joint", "sequential")]
    best = max(rules, key=lambda name: score(apart.known(name))["mean"])
    return line(
        CHAT_MODEL,
        "adapters that were learned apart: merge them?",
        f"[{{recurrent_kif: {LASTING}}}, kl_base]",
        f"OP {carried.op('kif_kl_lasting')}; merged at best {apart.op(best)}",
        f"five skills, {apart.orders(best)}: OP {carried.op('kif_kl_lasting')}; the best of "
        f"{len(rules)} lines of rules, {best}, {apart.op(best)}; plain fine-tuning in sequence "
        f"{apart.op('sequential')}, each expert on its own {apart.op('apart')}, all rows at once "
        f"{apart.op('joint')}",
        carried,
        apart,
    )


def encoder_lines() -> list[dict[str, Any]]:
    """What was measured on the encoder."""
    standard, methods = Results("standard_cl"), Results("methods")
    long, merged = Results("long_sequence"), Results("standard_cl_merge")
    return [
        line(
            ENCODER,
            "some rows of each old task may be kept",
            "replay",
            f"OP {standard.op('replay')}; plain fine-tuning {standard.op('sequential')}",
            f"four tasks, three orders: OP {standard.op('replay')}, plain fine-tuning "
            f"{standard.op('sequential')}, all tasks at once {standard.op('joint')}; "
            f"recurrent_kif - replay: {standard.against('recurrent_kif_paper', 'replay')}",
            standard,
        ),
        line(
            ENCODER,
            "old rows, and many tasks (fifteen)",
            "replay",
            f"OP {long.op('replay')}; recurrent_kif {long.op('recurrent_kif_paper')} (paper) and "
            f"{long.op('recurrent_kif_release')} (release)",
            f"three orders: OP {long.op('replay')}; recurrent_kif "
            f"{long.op('recurrent_kif_paper')} with the preset paper and "
            f"{long.op('recurrent_kif_release')} with release (minus replay: "
            f"{long.against('recurrent_kif_release', 'replay')}), ewc {long.op('ewc')}, olora "
            f"{long.op('olora')}, plain fine-tuning {long.op('sequential')}",
            long,
        ),
        line(
            ENCODER,
            "no old row may be kept",
            "ewc",
            f"OP {methods.op('ewc')}; plain fine-tuning {methods.op('sequential')}",
            f"four tasks, two orders: OP {methods.op('ewc')}, plain fine-tuning "
            f"{methods.op('sequential')}, replay {methods.op('replay')}",
            methods,
        ),
        line(
            ENCODER,
            "learning may not take longer",
            "wise_ft",
            f"{methods.time('wise_ft', 'sequential')} times plain fine-tuning; OP "
            f"{methods.op('wise_ft')}, plain fine-tuning {methods.op('sequential')}",
            f"four tasks, two orders: {methods.time('wise_ft', 'sequential')} times plain "
            f"fine-tuning, with OP {methods.op('wise_ft')} instead of {methods.op('sequential')}; "
            f"l2 takes {methods.time('l2', 'sequential')} times as long, with "
            f"{methods.op('l2')}",
            methods,
        ),
        line(
            ENCODER,
            "tasks that can be learned apart: merge them?",
            "perdure run ... mode=per_task merge=regmean",
            f"OP {merged.op('regmean')}; learning in sequence {merged.op('sequential')}",
            f"four tasks, three orders, no old row: OP {merged.op('regmean')}, with average "
            f"{merged.op('average')}, learning in sequence {merged.op('sequential')}, all rows at "
            f"once {merged.op('joint')}, each expert on its own {merged.op('apart')}",
            merged,
        ),
        line(
            ENCODER,
            "all weights or an adapter?",
            "LoRA",
            f"plain fine-tuning with LoRA {methods.op('sequential')}, of all weights "
            f"{methods.op('sequential_whole')}",
            f"four tasks, two orders: plain fine-tuning with LoRA {methods.op('sequential')}, of "
            f"all weights {methods.op('sequential_whole')}, osf {methods.op('osf')}",
            methods,
        ),
    ]


def either_lines() -> list[dict[str, Any]]:
    """What was measured on both."""
    standard, carried = Results("standard_cl"), Results(CARRIED)
    return [
        line(
            EITHER,
            "the rows of all tasks are there at once",
            "mode: union",
            f"OP {carried.op('joint')} (chat model) and {standard.op('joint')} (encoder); one task "
            f"after another {carried.op('kif_kl_lasting')} and {standard.op('replay')}",
            f"three orders: on the chat model {carried.scores('joint')}, one skill after another "
            f"with the default {carried.scores('kif_kl_lasting')}; on the encoder OP "
            f"{standard.op('joint')}, one task after another with replay {standard.op('replay')}",
            carried,
            standard,
        )
    ]


def line(
    kind: str, when: str, take: str, number: str, because: str, *results: Results
) -> dict[str, Any]:
    files = [f"benchmarks/results/{r.name}.json" for r in results]
    return {
        "kind": kind,
        "when": when,
        "take": take,
        "number": number,
        "because": because,
        "files": files,
    }


def text() -> str:
    """The text of `choosing.json`, which `perdure methods --recommend` prints."""
    return json.dumps(lines(), indent=1, ensure_ascii=False) + "\n"


def table() -> str:
    """The lines as tables of docs/choosing.md, one for each kind of model."""
    parts = []
    for kind, entries in groupby(lines(), key=lambda entry: entry["kind"]):
        cells = [
            [entry["when"], _code(entry["take"]), entry["number"], _names(entry["files"])]
            for entry in entries
        ]
        heads = ("you have", "take", "measured", "file")
        parts.append(f"### {kind}\n\n{markdown(heads, cells, text_columns=4)}")
    return "\n\n".join(parts)


def reasons() -> str:
    """The numbers beside those of the tables, as a list of docs/choosing.md."""
    items = []
    for entry in lines():
        end = "" if entry["when"].endswith("?") else "."
        item = (
            f"- **{entry['kind']}, {entry['when']}{end}** {entry['because'][0].upper()}"
            f"{entry['because'][1:]} ({_names(entry['files'])})."
        )
        items += wrap(item, 110, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(items)


def _code(take: str) -> str:
    return take if take.startswith(IN_WORDS) else f"`{take}`"


def _names(files: list[str]) -> str:
    return ", ".join(f"`{Path(file).stem}`" for file in files)


# The result file, what it is about, and its lines: Recurrent-KIF, replay of as many rows, the same
# fusion without identification.
IDENTIFIED = (
    (
        "standard_cl",
        "encoder, 4 tasks, 125 steps, 20 rows a task",
        [
            ("recurrent_kif_paper", "replay", "mask_free"),
            ("recurrent_kif_release", "replay", "mask_free"),
        ],
    ),
    (
        "methods",
        "encoder, 4 tasks, 100 steps, 10 rows a task",
        [("recurrent_kif_paper", "replay", None), ("recurrent_kif_release", "replay", None)],
    ),
    (
        "long_sequence",
        "encoder, 15 tasks, 75 steps, 10 rows a task",
        [
            ("recurrent_kif_paper", "replay", "mask_free"),
            ("recurrent_kif_release", "replay", "mask_free"),
            ("full", None, "one_pair"),
            ("soft_weights", None, "one_pair"),
        ],
    ),
    (
        CHAT,
        "chat model, 5 tasks, 40 steps, 60 rows in all",
        [
            ("kif_paper", "replay", "mask_free"),
            ("kif_parameter", "replay", "mask_free"),
            ("kif_half_kl_weak", "replay_kl_weak", "mask_free_kl_weak"),
            ("kif_kl_lasting", "replay_kl_4x", "mask_free_kl_4x"),
        ],
    ),
    (
        CARRIED,
        "the same chat model and skills, test rows",
        [("recurrent_kif", "replay", None), ("kif_kl_lasting", "replay_kl_4x", None)],
    ),
    (
        CONFIRMED,
        "the same, with the reverses of these orders",
        [("kif_kl_lasting", "replay_kl_4x", "mask_free_kl_4x")],
    ),
    (
        ELSEWHERE,
        "the same chat model, 5 SuperNI tasks, fewer rows in replay",
        [("kif_kl_lasting", "replay_kl", None)],
    ),
    (
        "smollm2_superni",
        "the same tasks and rows, fewer orders",
        [("recurrent_kif", "replay", None), ("kif_kl_lasting", "replay_kl_4x", None)],
    ),
    (
        "smollm2_standard_cl",
        "the same chat model, 5 tasks of Standard CL",
        [("recurrent_kif", "replay", None), ("kif_kl_lasting", "replay_kl_4x", None)],
    ),
)


def identification() -> str:
    """Recurrent-KIF beside replay and beside fusion without identification, in all results."""
    cells = []
    for name, setting, compared in IDENTIFIED:
        results = Results(name)
        for ours, replay, mask_free in compared:
            if ours not in results.methods:
                continue
            others = [
                results.against(ours, other) if other in results.methods else "-"
                for other in (replay, mask_free)
            ]
            count = len({order for order, _ in results.methods[ours]})
            cells.append([f"`{ours}`", setting, str(count), results.op(ours), *others])
    heads = ("line", "where", "orders", "OP", "OP - replay", "OP - without identification")
    return markdown(heads, cells, text_columns=2)
