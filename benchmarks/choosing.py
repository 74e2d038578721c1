"""What to take for which model and data, each line with its number and the file that has it.

`tables.py` writes the lines to docs/choosing.md and to the file that `perdure methods --recommend`
prints. A line whose result file does not exist yet is left out.
"""

import json
from pathlib import Path
from typing import Any

from table_text import difference_text, markdown

from perdure.comparison.summary import difference, lost, score
from perdure.measure.statistics import mean


RESULTS = Path(__file__).parent / "results"
CHAT = "smollm2_assistant_screen"  # the records of the chat model that the lines below use
CARRIED = "smollm2_assistant"  # those of its lines that were run in several orders
APART = "smollm2_assistant_merge"  # the records of its merged experts
WITHOUT_ROWS = ("ewc", "wise_ft", "self_replay", "lwf", "kl_base", "kif_rehearsal_free")
LASTING = (  # the keywords of `kif_kl_lasting`
    "{fusion: {both: [1, 1], inner: [1, 0], outer: [0, 1], neither: [1, 0]}, beta_outer: 0.95, "
    "outer_batch_size: 16}"
)
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

    def op(self, method: str) -> str:
        """The mean OP of a method over the orders."""
        return f"{score(self.known(method))['mean']:.3f}"

    def against(self, method: str, other: str) -> str:
        """The difference of two methods' OP, with its interval if there are three orders."""
        return difference_text(difference(self.known(method), self.known(other)))

    def time(self, method: str, other: str) -> str:
        """The CPU seconds of learning, divided by those of another method in the same cells."""
        ours, theirs = self.methods[method], self.methods[other]
        return f"{times([(ours[pair], theirs[pair]) for pair in ours if pair in theirs]):.2f}"

    def kl(self, method: str) -> str:
        """The mean KL from the base, in nats per token."""
        return f"{mean([*self.known(method, 'kl').values()]):.2f}"

    def kept(self, method: str) -> str:
        """What is left of general ability: how many of the base's checks fell, and the KL."""
        losses = lost([*self.methods[method].values()])
        return f"{losses['fell']} of {losses['passed_by_reference']} checks fell"


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
    """The lines: `when`, `take`, `because` and `files`."""
    standard, methods = Results("standard_cl"), Results("methods")
    long, orders = Results("long_sequence"), Results("chat_orders")
    merged = Results("standard_cl_merge")
    made = [
        *chat_lines(),
        line(
            "a chat model, and some rows of each old task may be kept",
            "[replay, kl_base]",
            f"three orders of three tasks: OP {orders.op('default')}, {orders.kept('default')}; "
            f"plain fine-tuning {orders.op('sequential')}, {orders.kept('sequential')}",
            orders,
        ),
        line(
            "an encoder, and some rows of each old task may be kept",
            "replay",
            f"four tasks: OP {standard.op('replay')}, plain fine-tuning "
            f"{standard.op('sequential')}, all tasks at once {standard.op('joint')}; "
            f"recurrent_kif - replay: {standard.against('recurrent_kif_paper', 'replay')}",
            standard,
        ),
        line(
            "an encoder, and no old row may be kept",
            "ewc",
            f"four tasks, two orders: OP {methods.op('ewc')}, plain fine-tuning "
            f"{methods.op('sequential')}, replay {methods.op('replay')}",
            methods,
        ),
        line(
            "an encoder, and tasks that can be learned apart",
            "perdure run ... mode=per_task merge=regmean",
            f"four tasks, three orders, no old row: OP {merged.op('regmean')}, with average "
            f"{merged.op('average')}, learning in sequence {merged.op('sequential')}, all rows at "
            f"once {merged.op('joint')}, each expert on its own {merged.op('apart')}",
            merged,
        ),
        apart_line(),
        line(
            "no additional time for learning",
            "wise_ft or l2",
            f"{methods.time('wise_ft', 'sequential')} and {methods.time('l2', 'sequential')} times "
            f"plain fine-tuning; OP {methods.op('wise_ft')} and {methods.op('l2')} where that has "
            f"{methods.op('sequential')} (an encoder, two orders)",
            methods,
        ),
        line(
            "many tasks (fifteen)",
            "replay",
            f"OP {long.op('replay')}; recurrent_kif {long.op('recurrent_kif_paper')}, ewc "
            f"{long.op('ewc')}, olora {long.op('olora')}, plain fine-tuning "
            f"{long.op('sequential')} (an encoder, three orders)",
            long,
        ),
        line(
            "all weights or an adapter?",
            "LoRA",
            f"plain fine-tuning with LoRA {methods.op('sequential')}, of all weights "
            f"{methods.op('sequential_whole')}, osf {methods.op('osf')} (an encoder, two orders)",
            methods,
        ),
        line(
            "the rows of all tasks are there at once",
            "mode: union",
            f"OP {standard.op('joint')}, one task after another with replay "
            f"{standard.op('replay')} (an encoder, three orders)",
            standard,
        ),
    ]
    return made


def chat_lines() -> list[dict[str, Any]]:
    """What the screen on the chat model says of skills alone, if there is its result file."""
    if not (RESULTS / f"{CHAT}.json").exists():
        return []
    screen = Results(CHAT)
    plain = "sequential, training.learning_rate=0.002"
    others = (
        f"replay alone {screen.op('replay')} with {screen.kl('replay')}, recurrent_kif alone "
        f"{screen.op('kif_paper')} with {screen.kl('kif_paper')}, [replay, kl_base] "
        f"{screen.op('replay_kl')} with {screen.kl('replay_kl')}, plain fine-tuning "
        f"{screen.op(plain)} with {screen.kl(plain)}, all rows at once {screen.op('joint')}"
    )
    return [
        line(
            "a chat model whose skills matter more than its general ability",
            "[replay, {kl_base: {strength: 0.05}}]",
            f"five skills, one order, 60 old rows: OP {screen.op('replay_kl_weak')}, KL to the "
            f"base {screen.kl('replay_kl_weak')}; recurrent_kif's fusion with the same anchor "
            f"{screen.op('kif_half_kl_weak')} with {screen.kl('kif_half_kl_weak')}, without "
            f"identification {screen.op('mask_free_kl_weak')} with "
            f"{screen.kl('mask_free_kl_weak')}, which is level; {others}",
            screen,
        ),
        *carried_lines(),
        line(
            "a chat model, and no old row may be kept",
            "no method: keep a few rows of each task",
            "each line without old rows lost three or four of four old skills: "
            + ", ".join(f"{name} OP {screen.op(name)}" for name in WITHOUT_ROWS)
            + f"; replay of 60 rows {screen.op('replay')}",
            screen,
        ),
    ]


def carried_lines() -> list[dict[str, Any]]:
    """What three orders of the same skills say of learning that may take longer."""
    if not (RESULTS / f"{CARRIED}.json").exists():
        return []
    carried, ours = Results(CARRIED), "kif_kl_lasting"
    others = ", ".join(
        f"{what} {carried.op(name)} with {carried.kl(name)}, {carried.kept(name)}"
        for name, what in (
            ("replay_kl_4x", "[{replay: {ratio: 2.0}}, kl_base]"),
            ("replay", "replay alone"),
            ("replay_kl", "[replay, kl_base]"),
        )
    )
    return [
        line(
            "a chat model, and learning may take twice as long",
            f"[{{recurrent_kif: {LASTING}}}, kl_base]",
            f"five skills, three orders: OP {carried.op(ours)}, KL {carried.kl(ours)}, "
            f"{carried.kept(ours)}; {others}. OP against replay alone "
            f"{carried.against(ours, 'replay')}, against replay with as many old rows and the "
            f"anchor {carried.against(ours, 'replay_kl_4x')}",
            carried,
        )
    ]


def apart_line() -> dict[str, Any]:
    """What merging experts of the chat model gives."""
    apart, screen = Results(APART), Results(CHAT)
    rules = [name for name in apart.methods if name not in ("apart", "joint", "sequential")]
    best = max(rules, key=lambda name: score(apart.known(name))["mean"])
    orders = ("one order", "two orders", "three orders")[len(apart.known(best)) - 1]
    return line(
        "a chat model: learn in sequence, or merge adapters that were learned apart?",
        "[replay, kl_base]",
        f"five skills, {orders}: the best of {len(rules)} lines of rules, {best}, OP "
        f"{apart.op(best)} and KL {apart.kl(best)}; plain fine-tuning in sequence "
        f"{apart.op('sequential')}, each expert on its own {apart.op('apart')}, all rows at once "
        f"{apart.op('joint')}; with old rows {screen.op('replay_kl')} on one order and dev rows",
        apart,
        screen,
    )


def line(when: str, take: str, because: str, *results: Results) -> dict[str, Any]:
    files = [f"benchmarks/results/{r.name}.json" for r in results]
    return {"when": when, "take": take, "because": because, "files": files}


def text() -> str:
    """The text of `choosing.json`, which `perdure methods --recommend` prints."""
    return json.dumps(lines(), indent=1, ensure_ascii=False) + "\n"


def table() -> str:
    """The lines as a table of docs/choosing.md."""
    cells = [
        [
            entry["when"],
            entry["take"] if entry["take"].startswith(IN_WORDS) else f"`{entry['take']}`",
            entry["because"],
            ", ".join(map(_name, entry["files"])),
        ]
        for entry in lines()
    ]
    return markdown(("you have", "take", "because", "file"), cells, text_columns=4)


def _name(file: str) -> str:
    return f"`{Path(file).stem}`"


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
            ("full", None, "no_masks"),
            ("soft_weights", None, "no_masks"),
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
)


def identification() -> str:
    """Recurrent-KIF beside replay and beside fusion without identification, in all results."""
    cells = []
    for name, setting, compared in IDENTIFIED:
        if not (RESULTS / f"{name}.json").exists():
            continue
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
