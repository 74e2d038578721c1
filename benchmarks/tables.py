"""Makes the tables and pictures of the benchmarks from their result files.

    python benchmarks/tables.py                          # for the READMEs, docs/ and `methods NAME`
    python benchmarks/tables.py --take methods FOLDER... # first make results/methods.json
    python benchmarks/tables.py --add methods FOLDER... # first add lines to it, or replace them

A result file contains records, one for each run: a method on an order with a seed. `--take` makes
them, and `--add` more of them, from the `compare.json` and `costs.json` of finished comparisons.
"""

import argparse
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_args

import choosing
import confirmed
import defaults
import picture
from table_text import difference_text, markdown, spread_text

from perdure.comparison.grid import with_overrides
from perdure.comparison.summary import difference, lost, mark_what_differs, score
from perdure.measure.statistics import mean
from perdure.methods import SHORT, find, make, names
from perdure.reporting.measured import COLUMNS as MEASURED
from perdure.reporting.measured import measured
from perdure.reporting.results import write
from perdure.train.method import Family


HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGES = (
    *(HERE.parent / "README.md", HERE / "README.md"),
    *(
        DOCS / name
        for name in ("check.md", "choosing.md", "identification.md", "merge.md", "results.md")
    ),
)
COSTS = HERE.parent / "src" / "perdure" / "reporting" / "measured.json"
CHOICES = COSTS.with_name("choosing.json")
COSTS_SETTING = (
    "the benchmark `methods`, an encoder of 22.7 M parameters with LoRA on four tasks of 400 rows, "
    "one thread, two seeds of two orders; time, memory and OP relative to `sequential`, on these "
    "orders"
)
# arXiv 2502.17510: T5-large, order 1, OP and BWT in per cent; None if not in the paper's table.
ABLATION: dict[str, tuple[float, float] | None] = {
    "full": (77.9, -3.4),
    "no_refresh": (74.8, -4.8),
    "no_masks": (52.3, -21.5),
    "one_pair": (72.1, -11.2),
    "soft_weights": (76.1, -4.1),
    "no_shared": (75.8, -4.3),
    "slow_map": None,
}
REFERENCES = {"replay": "OP - replay [95 %]", "mask_free": "OP - mask-free [95 %]"}
CARRIED = tuple(
    name
    for name in (
        *("smollm2_assistant", "smollm2_assistant_confirm"),
        *("smollm2_superni", "smollm2_superni_confirm", "smollm2_standard_cl"),
    )
    if (HERE / "results" / f"{name}.json").exists()
)
MERGED = ("standard_cl_merge", "smollm2_assistant_merge", "smollm2_assistant_merge_rates")
Records = list[dict[str, Any]]


def results(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def by_method(records: Records) -> dict[str, dict[Any, dict[str, Any]]]:
    """The records of each method by (order, seed), in the order of their first appearance."""
    methods: dict[str, dict[Any, dict[str, Any]]] = {}
    for record in records:
        methods.setdefault(record["method"], {})[record["order"], record["seed"]] = record
    return methods


def known(cells: dict[Any, dict[str, Any]], key: str) -> dict[Any, float]:
    """The values of a key by (order, seed), without unknown ones."""
    return {pair: r[key] for pair, r in cells.items() if r.get(key) is not None}


def scores_table(records: Records) -> str:
    """Each method's scores, its differences to replay and `mask_free`, and its training time."""
    methods = by_method(records)
    overall = {method: known(cells, "overall") for method, cells in methods.items()}
    differences: dict[str, dict[str, dict[str, Any]]] = {}  # by reference, then by method
    for reference in REFERENCES:
        differences[reference] = {
            method: difference(overall[method], overall[reference])
            for method in methods
            if method != reference
        }
        mark_what_differs(list(differences[reference].values()))
    plain, lines = methods["sequential"], []
    for method, cells in methods.items():
        rate = next(reversed(cells.values()))["learning_rate"]
        seconds = score(known(cells, "seconds"))["mean"]
        ratio = mean([r["seconds"] / plain[pair]["seconds"] for pair, r in cells.items()])
        line = (
            method,
            f"{rate:g}" if rate else "-",
            str(len(cells)),
            spread_text(score(overall[method]), ".3f"),
            spread_text(score(known(cells, "backward_transfer")), "+.3f"),
            spread_text(score(known(cells, "learning_accuracy")), ".3f"),
            *(difference_text(differences[reference].get(method)) for reference in REFERENCES),
            f"{seconds:.0f}" if seconds else "-",
            f"{ratio:.2f}" if ratio else "-",
        )
        lines.append(line)
    heads = ("method", "rate", "n", "OP", "BWT", "learned", *REFERENCES.values())
    return markdown((*heads, "CPU s", "x sequential"), lines)


def methods_lines(records: Records) -> list[dict[str, str]]:
    """Each method's scores and costs relative to plain fine-tuning, by column.

    Methods that train whole weights are compared with `sequential_whole`.
    """
    methods, lines = by_method(records), []
    differences: dict[bool, dict[str, dict[str, Any]]] = {False: {}, True: {}}  # by `whole`
    for method, cells in methods.items():
        whole = next(iter(cells.values()))["whole"]
        plain = methods["sequential_whole" if whole else "sequential"]
        if "sequential" not in method:
            differences[whole][method] = difference(
                known(cells, "overall"), known(plain, "overall")
            )
    for differences_of_kind in differences.values():
        mark_what_differs(list(differences_of_kind.values()))
    for method, cells in methods.items():
        first = next(iter(cells.values()))
        plain = methods["sequential_whole" if first["whole"] else "sequential"]
        pairs = [(r, plain[pair]) for pair, r in cells.items() if pair in plain]
        peak = mean([(r["peak_memory_kib"] - p["peak_memory_kib"]) / 1024 for r, p in pairs])
        state = mean([r["state_bytes"] / 1e6 for r in cells.values()])
        line = {
            "method": method,
            "keywords": _keywords(first["keywords"], first["changed"]),
            "rate": f"{first['learning_rate']:g}",
            "n": str(len(cells)),
            "OP": spread_text(score(known(cells, "overall")), ".3f"),
            "OP - sequential": difference_text(differences[first["whole"]].get(method)),
            "BWT": spread_text(score(known(cells, "backward_transfer")), "+.3f"),
            "learned": spread_text(score(known(cells, "learning_accuracy")), ".3f"),
            "time x": f"{choosing.times(pairs):.2f}",
            "peak MB +": f"{peak:+.0f}",
            "state MB": f"{state:.1f}",
            "rows kept": str(first["remembered_rows"] if first["rehearses"] else 0),
        }
        lines.append(line)
    return lines


def methods_table(records: Records) -> str:
    lines = methods_lines(records)
    return markdown([*lines[0]], [[*line.values()] for line in lines], text_columns=2)


def _keywords(method: Any, changed: dict[str, Any]) -> str:
    keywords = [*method.values()] if isinstance(method, dict) else []
    texts = [f"{k}={v}" for keyword_set in keywords for k, v in keyword_set.items()]
    texts += [f"memory.{k}={v}" for k, v in changed.get("memory", {}).items()]
    return ", ".join(texts) or "-"


def costs_of_methods(records: Records) -> str:
    """The text of `measured.json`, from which `perdure methods NAME` prints costs."""
    keywords_by_method = {record["method"]: record["keywords"] for record in records}
    rows_by_method: dict[str, list[dict[str, str]]] = {}
    for line in methods_lines(records):
        keywords = keywords_by_method[line["method"]]
        name = keywords if isinstance(keywords, str) else "+".join(keywords)
        if line["method"] not in ("joint", "sequential_whole") and name != "sequential":
            row = {key: line[column] for key, column in MEASURED.items()}
            rows_by_method.setdefault(name, []).append(row)
    return json.dumps({"setting": COSTS_SETTING, "methods": rows_by_method}, indent=1) + "\n"


def trials_table(trials: Records) -> str:
    """The trials of learning rates: one line for each method, and columns for each rate."""
    trials = [r for r in trials if r["learning_rate"]]  # `constant` has no rate to choose
    rates = sorted({r["learning_rate"] for r in trials})
    trial_by_rate = {(r["method"], r["learning_rate"]): r for r in trials}
    lines = []
    for method in dict.fromkeys(r["method"] for r in trials):
        method_trials = [trial_by_rate.get((method, rate), {}) for rate in rates]
        lines.append([method, *(_number(r.get("overall"), ".3f") for r in method_trials)])
    return markdown(("method", *(f"OP at {rate:g}" for rate in rates)), lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def ablation_table(records: Records) -> str:
    """The ablation, with the paper's numbers next to ours."""
    methods = by_method(records)
    variants = [variant for variant in ABLATION if variant in methods]
    full = known(methods["full"], "overall")
    differences = {
        variant: difference(known(methods[variant], "overall"), full)
        for variant in variants
        if variant != "full"
    }
    mark_what_differs(list(differences.values()))
    keys = {"overall": ".3f", "backward_transfer": "+.3f", "learning_accuracy": ".3f"}
    lines = []
    for variant in variants:
        cells = methods[variant].values()
        ours = [_number(mean([r[key] for r in cells]), form) for key, form in keys.items()]
        change = difference_text(differences.get(variant))
        lines.append([variant, str(len(cells)), ours[0], change, *ours[1:], *_published(variant)])
    heads = ("variant", "n", "OP", "OP - full", "BWT", "learned", "paper: OP", "OP - full", "BWT")
    return markdown(heads, lines)


def _published(variant: str) -> tuple[str, str, str]:
    published, full = ABLATION[variant], ABLATION["full"]
    if published is None or full is None:
        return "-", "-", "-"
    change = published[0] - full[0]
    return f"{published[0]:.1f}", f"{change:+.1f}" if change else "-", f"{published[1]:+.1f}"


def probes_table(records: Records) -> str:
    """Single changed keywords, scored on held-out rows."""
    keys = ("overall", "backward_transfer", "learning_accuracy")
    lines = [
        [r["method"], f"{r['learning_rate']:g}", *(_number(r.get(k), ".3f") for k in keys)]
        for r in records
    ]
    return markdown(("probe", "rate", "OP", "BWT", "learned"), lines)


def losses_table(records: Records) -> str:
    """What each run on a chat model learned and lost, and the means of each method."""
    methods: dict[str, Records] = {}
    for record in records:
        methods.setdefault(record["method"], []).append(record)
    lines = []
    for method, runs in methods.items():
        for record in runs:
            order = str(record["order"]).replace("+", ", ")
            lines.append([f"`{method}`", order, *_losses([record])])
        if len(runs) > 1:
            lines.append([f"`{method}`", f"all {len(runs)}", *_losses(runs)])
    heads = ("order", "learned", "OP", "tasks lost", "checks that fell", "rose", "KL")
    return markdown(("method", *heads), lines, text_columns=2)


def _losses(runs: Records) -> list[str]:
    """Means of the scores and of KL, and sums of what was lost."""
    means = [mean([run[key] for run in runs]) for key in ("learning_accuracy", "overall")]
    losses = lost(runs)
    return [
        *(_number(value, ".3f") for value in means),
        str(losses["tasks"]),
        f"{losses['fell']} of {losses['passed_by_reference']}",
        str(losses["rose"]),
        _number(losses["kl"], ".3f"),
    ]


def screen_table(records: Records) -> str:
    """The lines of a screen: one run each, the best OP first."""
    lines = []
    for record in sorted(records, key=lambda r: -r["overall"]):
        general = record["general"]
        changed = f", lr {record['learning_rate']:g}" * ("learning_rate" in record["method"])
        lines.append(
            [
                f"`{record['method'].partition(',')[0]}`{changed}",
                *(_number(record[key], ".3f") for key in ("overall", "learning_accuracy")),
                str(len(record["lost_tasks"])) if "lost_tasks" in record else "-",
                f"{record['flips']} of {general['passed_by_reference']}",
                _number(record["kl"], ".2f"),
                _rows_kept([record]),
                f"{record['seconds']:.0f}",
            ]
        )
    heads = ("line", "OP", "learned", "tasks lost", "checks that fell", "KL", "rows kept", "CPU s")
    return markdown(heads, lines)


def _rows_kept(runs: Records) -> str:
    """The most rows that a run kept for its last stage."""
    if any(run["method"] == "joint" for run in runs):
        return "all"
    return str(max(run["remembered_rows"] * run["rehearses"] for run in runs))


def carried_table(records: Records) -> str:
    """The lines of a stream that a chat model learned in several orders, the best OP first.

    OP and the checks that fell are compared with `replay_kl`, order by order.
    """
    methods = by_method(records)
    compared = {
        key: {
            method: difference(known(cells, key), known(methods["replay_kl"], key))
            for method, cells in methods.items()
            if method != "replay_kl"
        }
        for key in ("overall", "flips")
    }
    for differences in compared.values():
        mark_what_differs(list(differences.values()))
    lines = []
    for method in sorted(methods, key=lambda m: -score(known(methods[m], "overall"))["mean"]):
        cells = methods[method]
        losses = lost([*cells.values()])
        lines.append(
            [
                f"`{method}`",
                str(len(cells)),
                spread_text(score(known(cells, "overall")), ".3f"),
                difference_text(compared["overall"].get(method)),
                spread_text(score(known(cells, "learning_accuracy")), ".3f"),
                _number(losses["tasks"], "d"),
                f"{losses['fell']} of {losses['passed_by_reference']}",
                difference_text(compared["flips"].get(method), ".1f"),
                _number(losses["kl"], ".2f"),
                _rows_kept([*cells.values()]),
                _number(mean([r["seconds"] for r in cells.values()]), ".0f"),
            ]
        )
    heads = ["line", "orders", "OP", "OP - `replay_kl`", "learned", "tasks lost"]
    heads += ["checks that fell", "fell - `replay_kl`", "KL", "rows kept", "CPU s"]
    return markdown(heads, lines)


def merged_table(records: Records) -> str:
    """What merging keeps beside learning in sequence and all rows at once, the best OP first.

    General ability is that of the merged model; of experts apart there is one model for each.
    """
    methods = by_method(records)
    overall = {method: known(cells, "overall") for method, cells in methods.items()}
    lines = []
    for method in sorted(methods, key=lambda m: -score(overall[m])["mean"]):
        cells = methods[method]
        line = [
            f"`{method}`",
            str(len(cells)),
            spread_text(score(overall[method]), ".3f"),
            spread_text(score(known(cells, "backward_transfer")), "+.3f"),
            spread_text(score(known(cells, "learning_accuracy")), ".3f"),
        ]
        if "kl" in next(iter(cells.values())):
            losses = lost([*cells.values()])
            fell = f"{losses['fell']} of {losses['passed_by_reference']}"
            line += [fell, _number(losses["kl"], ".2f")] if method != "apart" else ["-", "-"]
        lines.append(line)
    heads = ["line", "orders", "OP", "BWT", "right after it arrived"]
    heads += ["checks that fell", "KL"] * ("kl" in records[0])
    return markdown(heads, lines)


def merge_table(records: Records) -> str:
    """Merging beside mergekit and PEFT."""
    lines = []
    for r in records:
        peaks = r.get("peak_mib")
        quartiles = f"{r['low']:.2f} to {r['high']:.2f}"
        peak = f"{peaks['ours']} / {peaks['theirs']}" if peaks else "-"
        lines.append([f"`{r['name']}`", r["what"], f"{r['ratio']:.2f}", quartiles, peak])
    heads = ("record", "what is timed", "ratio", "quartiles", "peak MiB, ours / theirs")
    return markdown(heads, lines, text_columns=2)


def speed_table(records: Records) -> str:
    """Ratios of our times to those of what a user would otherwise run."""
    lines = [
        [
            f"`{r['name']}`",
            r["what"].rstrip("."),
            f"{r['ratio']:.2f}",
            f"{r['low']:.2f} to {r['high']:.2f}",
        ]
        for r in records
    ]
    return markdown(("record", "what is timed", "ratio", "quartiles"), lines, text_columns=2)


def peaks_table(records: Records) -> str:
    """The peak memory of learning all weights, relative to plain training."""
    lines = [
        [f"`{r['name']}`", f"{r['peak_mb']:.0f}", f"{r['ratio']:.2f}"]
        for r in records
        if r["what"] == "peak"
    ]
    return markdown(("training", "peak MiB", "of plain"), lines)


def functions_table(records: Records) -> str:
    """The memory and the times of Recurrent-KIF's functions on many weights."""
    parts = ("score", "mask", "fuse")
    lines = [
        [
            f"{r['n'] / 1e6:,.0f} million",
            r["dtype"],
            *(f"{r[key]:,.0f}" for key in ("held_mb", "extra_mb")),
            *(f"{r[f'{part}_ns_per_weight']:.1f}" for part in parts),
        ]
        for r in records
        if r["what"] == "functions"
    ]
    heads = ("weights", "data type", "held MiB", "more MiB", *(f"{part}, ns" for part in parts))
    return markdown(heads, lines, text_columns=2)


def likeness_table(records: Records) -> str:
    """The similarity of all texts in the encoder after some stages."""
    base, *methods = records
    stages = list(dict.fromkeys(stage for r in methods for stage in r["similarity"]))
    lines = []
    for r in methods:
        values = [base["similarity"]["0"], *(r["similarity"][stage] for stage in stages)]
        lines.append([r["method"], *(f"{value:.2f}" for value in values)])
    return markdown(("method", "base", *(f"stage {stage}" for stage in stages)), lines)


def method_list() -> str:
    """All methods by family, with what they do and their measured scores, as Markdown.

    What a method does is the first paragraph of its docstring. The score relative to `sequential`
    is from `measured.json`; it is a range if several sets of keywords were measured.
    """
    families = get_args(Family)
    lines = []
    for name in sorted(names(), key=lambda name: (families.index(find(name).family), name)):
        method = find(name)
        summary = (inspect.getdoc(method) or "").partition("\n\n")[0].replace("\n", " ")
        differences = sorted({line["difference"] for line in measured(name)}, key=float)
        ends = dict.fromkeys([differences[0], differences[-1]]) if differences else ["-"]
        old_rows = "needed" if method.rehearses else "none"
        lines.append([f"`{name}`", summary.removesuffix("."), old_rows, " to ".join(ends)])
        for short, (of, preset) in SHORT.items():
            if of == name:
                what = f"`{of}` with its preset `{preset}`: the old model is the base"
                lines.append([f"`{short}`", what, old_rows, "-"])
    return markdown(
        ("method", "what it does", "old rows", "OP - sequential"), lines, text_columns=3
    )


def with_tables(text: str) -> str:
    """The text with all tables between markers replaced by those of the result files."""
    long_sequence = results("long_sequence")
    compared = [r for r in long_sequence["records"] if r["method"] not in ABLATION]
    tables = {
        **{name: carried_table(results(name)["records"]) for name in CARRIED},
        **{name: merged_table(results(name)["records"]) for name in MERGED},
        "method_list": method_list(),
        "standard_cl": scores_table(results("standard_cl")["records"]),
        "methods": methods_table(results("methods")["records"]),
        "standard_cl_why": probes_table(results("standard_cl_why")["records"]),
        "long_sequence": scores_table(compared),
        "long_sequence_trials": trials_table(long_sequence["trials"]),
        "long_sequence_why": likeness_table(results("long_sequence_why")["records"]),
        "speed": speed_table(results("speed")["records"]),
        "full_weights_peaks": peaks_table(results("full_weights")["records"]),
        "full_weights_functions": functions_table(results("full_weights")["records"]),
        "defaults": defaults.markdown(results("defaults")["records"]),
        "chat_orders": losses_table(results("chat_orders")["records"]),
        "chat_strength": losses_table(results("chat_strength")["records"]),
        "smollm2_assistant_screen": screen_table(results("smollm2_assistant_screen")["records"]),
        "merge": merge_table(results("merge")["records"]),
        "choosing": choosing.table(),
        "choosing_reasons": choosing.reasons(),
        "identification": choosing.identification(),
        "confirmed": confirmed.table(),
        "ablation": ablation_table(long_sequence["records"]),
    }
    for name, table in tables.items():
        pattern = rf"(<!-- {name}:[^>]*-->\n).*?(<!-- /{name} -->)"
        text = re.sub(pattern, lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL)
    return text


def pictures() -> dict[str, str]:
    """The SVGs of docs/, by name."""
    compared = [r for r in results("long_sequence")["records"] if r["method"] not in ABLATION]
    return {
        "methods": picture.picture(results("methods")["records"], "OP of every method"),
        "long_sequence": picture.picture(compared, "OP after fifteen tasks"),
    }


def taken(folder: Path) -> tuple[Records, Records]:
    """The records of a finished comparison and of its trials, in the form of the result files.

    `state_bytes` is the size of what the next task needs besides the model, with remembered rows.
    """
    comparison = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    varying = json.loads((folder / "costs.json").read_text(encoding="utf-8"))["cells"]
    settings, choices = comparison["settings"], comparison["choose"] or {}
    methods = {line["name"]: line["settings"] for line in comparison["lines"]}
    varied = {line["name"]: line.get("varied") or {} for line in comparison["lines"]}
    records, trials = [], []
    for cell in comparison["cells"]:
        line = cell["line"]
        choice = choices.get(line, {})
        overrides = varied[line] | ({choice["key"]: choice["chosen"]} if choice else {})
        run_settings = _run_settings(settings, methods[line], line, overrides)
        costs = varying.get(cell["name"], {})
        records.append(
            {
                "method": line,
                "order": _order(cell["order"]),
                "seed": cell["seed"],
                **{k: cell[k] for k in ("overall", "backward_transfer", "learning_accuracy")},
                "matrix": cell["matrix"],
                "seconds": costs.get("cpu_seconds", 0.0),
                "cpu_seconds": costs.get("cpu_seconds", 0.0),
                "peak_memory_kib": costs.get("peak_memory_bytes", 0) // 1024,
                "state_bytes": cell["stored_bytes"] or 0,
                "remembered_rows": cell["stored_rows"],
                **{k: cell[k] for k in ("lost_tasks", "general") if cell.get(k) is not None},
                **_flips(cell.get("general") or {}),
                **run_settings,
            }
        )
        if cell["mode"] == ["constant"]:
            records[-1]["learning_rate"] = 0.0
    for line, choice in choices.items():
        for value, overall in zip(choice["values"], choice["overall"], strict=True):
            overrides = {choice["key"]: value}
            run_settings = _run_settings(settings, methods[line], line, overrides)
            trials.append(
                {"method": line, "overall": overall, "backward_transfer": None, **run_settings}
            )
    return records, trials


def _flips(general: dict[str, Any]) -> dict[str, Any]:
    """How many of the guard's checks the base passes and the last stage does not, and the KL."""
    return {"flips": general["fell"], "kl": general["kl"]} if "fell" in general else {}


def _run_settings(
    settings: dict[str, Any], method: Any, line: str, overrides: dict[str, Any]
) -> dict[str, Any]:
    """The settings of a cell that its record has: the method, the rate, and those of its line."""
    line_settings = settings.get("lines", {}).get(line, {})
    cell_settings = with_overrides({**settings, "method": method}, {**line_settings, **overrides})
    changed = {"memory": {k[7:]: v for k, v in line_settings.items() if k.startswith("memory.")}}
    return {
        "keywords": cell_settings["method"],
        "learning_rate": cell_settings["training"]["learning_rate"],
        "whole": cell_settings.get("adapter", {}) is None,  # left out: the default adapter
        "rehearses": any(m.rehearses for m in make(cell_settings["method"])),
        "changed": changed if changed["memory"] else {},
    }


def _order(name: str) -> int | str:
    last = name.rpartition("_")[2]
    return int(last) if last.isdigit() else name


def take(name: str, folders: list[Path], adds: bool = False) -> None:
    """Write the result file `name` from finished comparisons.

    With `adds`, the lines that it has of other methods stay.
    """
    parts = [taken(folder) for folder in folders]
    records = [record for part, _ in parts for record in part]
    trials = [trial for _, part in parts for trial in part]
    if adds:
        new, old = {record["method"] for record in records}, results(name)
        records = [r for r in old["records"] if r["method"] not in new] + records
        trials = [t for t in old["trials"] if t["method"] not in new] + trials
    command = f"python benchmarks/tables.py --{'add' if adds else 'take'} {name} FOLDER..."
    write(
        HERE / "results" / f"{name}.json",
        benchmark=name,
        command=command,
        device="cpu, 1 thread a process",
        records=records,
        trials=trials,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make tables and pictures from the result files.")
    parser.add_argument("--take", nargs="+", metavar=("NAME", "FOLDER"))
    parser.add_argument("--add", nargs="+", metavar=("NAME", "FOLDER"))
    args = parser.parse_args()
    for given, adds in ((args.take, False), (args.add, True)):
        if given:
            name, *folders = given
            take(name, [Path(folder) for folder in folders], adds)
    COSTS.write_text(costs_of_methods(results("methods")["records"]), encoding="utf-8")
    CHOICES.write_text(choosing.text(), encoding="utf-8")
    for name, svg in pictures().items():
        (DOCS / f"{name}.svg").write_text(svg, encoding="utf-8")
    for path in PAGES:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(
        "written: the tables of the READMEs and docs/, the pictures,",
        COSTS.name,
        "and",
        CHOICES.name,
    )


if __name__ == "__main__":
    main()
