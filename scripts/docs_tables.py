"""Writes the tables of verbs, settings and methods into the pages of docs/, from the source.

    python scripts/docs_tables.py

The text between `<!-- made: NAME ARGUMENT -->` and `<!-- /made -->` is replaced by the result of
the function NAME below for this argument. `<!-- keys: CLASS -->` before a table adds the type and
the default of each key to its meaning. A test compares the pages with what this script would write.
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from textwrap import dedent, fill
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from typer.models import OptionInfo

import perdure
from perdure import api, cli, config
from perdure.cli import from_api
from perdure.cli.methods import preset_notes, preset_rows, value
from perdure.cli.output import quiet
from perdure.cli.rules import facts_of
from perdure.errors import PerdureError
from perdure.reporting.measured import measured_rows, setting


quiet()  # before the libraries below are imported
from transformers import TrainingArguments  # noqa: E402

from perdure.measure.matrix import ScoreMatrix  # noqa: E402
from perdure.merging import after  # noqa: E402
from perdure.merging.rules import find as find_rule  # noqa: E402
from perdure.merging.rules import keywords as rule_keywords  # noqa: E402
from perdure.merging.rules import names as rules_of_merging  # noqa: E402
from perdure.methods import find, keywords, names  # noqa: E402
from perdure.train import arguments  # noqa: E402
from perdure.verbs.chat import Chat  # noqa: E402
from perdure.verbs.methods import describe, spell  # noqa: E402
from perdure.verbs.rules import describe_rule, describe_treatment  # noqa: E402


DOCS = Path(__file__).parents[1] / "docs"
MARK = re.compile(r"(<!-- made: (\w+)(?: (\w+))? -->\n).*?(<!-- /made -->)", re.DOTALL)
KEYS = re.compile(r"<!-- keys: (\w+) -->\n+((?:\|.*\n)+)")
EMPTY = (None, False, inspect.Parameter.empty)
VERBS = {verb: cli.handler(verb) for verb in cli.VERBS}
CLASSES = {"Lineage": perdure.Lineage, "ScoreMatrix": ScoreMatrix, "Chat": Chat}
MEMBERS = {
    "Lineage": ("head", "stages", "at", "line", "matrix", "scores", "verdict", "timings"),
    "ScoreMatrix": ("tasks", "learned_at", "rows", "numbers"),
    "Chat": ("ask", "again", "switch", "reset", "system", "turns", "stage"),
}


def with_tables(page: str) -> str:
    """A page with all generated parts generated again.

    Raises:
        PerdureError: the verbs of the page, or the keys of a table, are not those of the source.
    """
    verbs_of_page = {match[3] for match in MARK.finditer(page) if match[2] == "verb"}
    if verbs_of_page and verbs_of_page != set(VERBS):
        raise PerdureError(f"verbs.md: wrong or missing verbs: {verbs_of_page ^ set(VERBS)}")
    page = KEYS.sub(lambda match: f"<!-- keys: {match[1]} -->\n{keys(match[1], match[2])}", page)
    return MARK.sub(
        lambda match: f"{match[1]}\n{MAKERS[match[2]](*filter(None, [match[3]]))}\n{match[4]}", page
    )


def table(*rows: list[str]) -> str:
    """Rows of cells as a Markdown table; the first row is the header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def verb(name: str) -> str:
    """The text of `perdure NAME --help`."""
    usage, rows = f"perdure {name}", [["argument", "meaning"]]
    for param in inspect.signature(VERBS[name]).parameters.values():
        kind, info = get_args(param.annotation)
        written = info.metavar or param.name.upper()
        if isinstance(info, OptionInfo):
            spellings = [word for word in (info.default, *(info.param_decls or ())) if word]
            option = next((w for w in spellings if str(w).startswith("--")), f"--{param.name}")
            written = f"{option} {info.metavar or _sort(kind)}".rstrip()
        else:
            usage += f" {written}"
        default = "" if param.default in EMPTY else f" Default: `{param.default}`."
        rows.append([f"`{written}`".replace("|", "\\|"), (info.help or "") + default])
    about = (inspect.getdoc(VERBS[name]) or "").partition("Example:")[0].strip()
    return f"{about}\n\n```text\n{usage} [OPTIONS]\n```\n\n{table(*rows)}"


def _sort(kind: Any) -> str:
    """The type of an option's value: TEXT, INT, PATH, or nothing."""
    sorts = {"str": "TEXT", "int": "INT", "float": "FLOAT", "Path": "PATH", "bool": ""}
    words = re.findall(r"\w+", f"{kind} {spell(kind)}")
    return next(sorts[word] for word in words if word in sorts)


def keys(cls: str, written: str) -> str:
    """A table of keys and their meanings, with the types and defaults from a dataclass."""
    fields = {field.name: field for field in dataclasses.fields(getattr(config, cls))}
    cells = (line.strip("|\n").split("|") for line in written.splitlines())
    meanings = {
        key.strip(" `"): meaning.partition("<br><small>")[0].strip()
        for key, meaning in list(cells)[2:]
    }
    if list(meanings) != list(fields):
        raise PerdureError(f"settings.md: {cls} has {list(fields)}, the page {list(meanings)}")
    rows = []
    for key, meaning in meanings.items():
        kind, default = _type_and_default(fields[key])
        rows.append([f"`{key}`", meaning + _small(kind, default)])
    return table(["key", "meaning"], *rows)


def _small(kind: str, default: str) -> str:
    """Small print below a meaning, so that the table is narrow enough for a phone."""
    return f"<br><small>{kind}" + (f"; default `{default}`" if default else "") + "</small>"


def _type_and_default(field: dataclasses.Field) -> tuple[str, str]:
    if config.section_of(field.type):
        or_null = " or null" if get_args(field.type) else ""
        return f"mapping{or_null}, see below", ""
    default: Any = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    text = json.dumps(default) if default in (True, False, {}, ()) else value(default)
    return _kind(field.type), text


def _kind(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) in (UnionType, Union):  # a union with a Literal is the latter
        return " or ".join(map(_kind, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(f"`{word}`" for word in get_args(kind))
    words = {str: "text", int: "integer", float: "number", bool: "true or false", dict: "mapping"}
    words[Any] = "text, mapping or list"
    return words.get(get_origin(kind) or kind) or spell(kind)


def defaults() -> str:
    """Perdure's defaults of the settings that are passed on to libraries."""
    values = {"training": config.DEFAULT_TRAINING, "adapter": config.DEFAULT_ADAPTER}
    return f"```yaml\n{yaml.safe_dump(values, sort_keys=False)}```\n"


def owned() -> str:
    """The keys of `training:` that the engine sets itself, grouped by reason."""
    valid = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    rows = [["keys", "instead"]]
    for reason, prefixes in groupby(arguments.OWNED, arguments.OWNED.__getitem__):
        owned_keys = dict.fromkeys(
            key
            for prefix in prefixes
            for key in valid
            if key.startswith(prefix) and arguments.owned(key)
        )
        if owned_keys:
            rows.append([", ".join(f"`{key}`" for key in owned_keys), reason])
    return table(*rows)


def refused() -> str:
    """The keys of `training:` with which methods cannot work."""
    rows = [[f"`{key}`", reason] for key, reason in arguments.REFUSED.items()]
    return table(["key", "reason, and alternative"], *rows)


def methods() -> str:
    """The text of `perdure methods`, and of `perdure methods NAME` for each method."""
    descriptions = [describe(name) for name in names()]
    rows = [["method", "what it does"]]
    sections = []
    for description in descriptions:
        name, family = description["name"], description["family"]
        old_rows = "old rows needed" if find(name).rehearses else "no old rows"
        about = f"{description['summary']}<br><small>{family}; {old_rows}</small>"
        rows.append([f"[`{name}`](#{name})", about])
        sections.append(f"\n## {name}\n\n{_method(description)}")
    return table(*rows) + "".join(sections)


def rules() -> str:
    """The text of `perdure rules`, and of `perdure rules NAME` for each rule."""
    rows = [["rule", "what it does"]]
    sections = []
    for description in map(describe_rule, rules_of_merging()):
        name = description["name"]
        kind = "adds" if description["adds_task_vectors"] else "does more than to add"
        rows.append([f"[`{name}`](#{name})", f"{description['summary']}<br><small>{kind}</small>"])
        sections.append(f"\n### {name}\n\n{_rule(description)}")
    return table(*rows) + "".join(sections)


def treatments() -> str:
    """The text of `perdure rules`, and of `perdure rules NAME`, for the treatments."""
    rows = [["treatment", "what it does"]]
    sections = []
    for description in map(describe_treatment, after.names()):
        name = description["name"]
        rows.append([f"[`{name}`](#{name})", description["summary"]])
        described = after.find(name), after.keywords(name)
        sections.append(f"\n### {name}\n\n{_of_merging(description, *described)}")
    return table(*rows) + "".join(sections)


def function(name: str) -> str:
    """What Python's form of a verb has other than its command, which `verb` shows."""
    described = getattr(api, name)
    about, sections = _docstring(described)
    meanings = from_api.described(described)[1]
    parameters = list(inspect.signature(described).parameters.values())
    extra = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    spelled_each = [*map(_parameter, parameters)]
    if extra:
        spelled_each.insert(next(i for i, p in enumerate(parameters) if p.name == extra[0]), "*")
    spelled = ", ".join(spelled_each)
    place = "perdure" if name in perdure.__all__ else "perdure.api"
    parts = [
        f"{about}\n",
        f"```text\n{fill(f'{place}.{name}({spelled})', 104, subsequent_indent='    ')}\n```\n",
    ]
    if extra != ["say"]:  # the page explains it once
        rows = [[f"`{name}`", meanings[name]] for name in extra if name != "say"]
        parts += [table(["only in Python", "meaning"], *rows)] if rows else []
    parts.append("".join(_wrapped(f"- {text}", "  ") for text in sections))
    return "\n".join(parts)


def _docstring(described: Any) -> tuple[str, list[str]]:
    """The text of a Google-style docstring before its sections, and what it returns and raises."""
    text = inspect.getdoc(described) or ""
    parts = re.split(r"^(Args|Returns|Raises|Attributes):\n", text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], map(dedent, parts[2::2]), strict=True))
    kept = []
    if "Returns" in sections:
        kept.append(f"**Returns** {_lower(' '.join(sections['Returns'].split()))}")
    raised = re.findall(r"^(\w+): (.*(?:\n +.*)*)", sections.get("Raises", ""), re.MULTILINE)
    kept += [f"**Raises** `{error}`: {' '.join(when.split())}" for error, when in raised]
    return parts[0].strip(), kept


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def _parameter(parameter: inspect.Parameter) -> str:
    """A parameter as it is written in a call, without its type."""
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
    return parameter.name + (default if "<" not in default else "=...")


def members(name: str) -> str:
    """What a user needs of a class: the members that MEMBERS names, and what they are."""
    cls = CLASSES[name]
    rows = []
    for member in MEMBERS[name]:
        described = getattr(cls, member, None)
        written = member
        if inspect.isfunction(described):
            _, *parameters = inspect.signature(described).parameters.values()
            written += f"({', '.join(map(_parameter, parameters))})"
        rows.append([f"`{written}`", _about(cls, member)])
    return table(["member", "meaning"], *rows)


def _about(cls: type, member: str) -> str:
    """The first paragraph of a member's docstring, or its meaning in that of the class."""
    described = getattr(cls, member, None)
    if inspect.isfunction(described) or isinstance(described, property):
        text = inspect.getdoc(described) or ""
    else:
        in_class = rf"^    {member}: (.*(?:\n     +.*)*)"
        *_, text = re.findall(in_class, inspect.getdoc(cls) or "", re.MULTILINE)
    first = " ".join(text.partition("\n\n")[0].split()).rstrip(".")
    meaning = first.removeprefix("Return ").partition(" (see ")[0] + "."
    return meaning[0].upper() + meaning[1:]


def _rule(description: dict[str, Any]) -> str:
    """The section of a rule."""
    name = description["name"]
    return _of_merging(description, find_rule(name), rule_keywords(name))


def _of_merging(
    description: dict[str, Any], described: type, parameters: Mapping[str, inspect.Parameter]
) -> str:
    """The section of a rule or a treatment."""
    about, _, arguments_text = (inspect.getdoc(described) or "").partition("Args:\n")
    paper = f"[Its paper]({description['paper']}).\n\n" if description["paper"] else ""
    own = [keyword for keyword in description["keywords"] if keyword["name"] != "exact"]
    parts = [
        f"{paper}{about.strip()}\n",
        *_keyword_table({"keywords": own}, arguments_text, parameters),
        table(["", ""], *(list(fact) for fact in facts_of(description))),
    ]
    return "\n".join(parts)


def _method(description: dict[str, Any]) -> str:
    """The section of a method."""
    method = find(description["name"])
    about, _, arguments_text = (inspect.getdoc(method) or "").partition("Args:\n")
    paper = f"; [its paper]({description['paper']})" if description["paper"] else ""
    parts = [
        f"Family: {description['family']}{paper}.\n\n{about.strip()}\n",
        *_keyword_table(description, arguments_text, keywords(description["name"])),
    ]
    if method.neutral:
        keyword_texts = ", ".join(f"`{key}: {value(word)}`" for key, word in method.neutral.items())
        parts.append(_wrapped(f"With {keyword_texts} it is bitwise `sequential`."))
    if method.presets:
        rows = [[f"`{key}`", *cells] for key, *cells in preset_rows(method)]
        parts.append(
            _wrapped(
                "Presets; \\* marks values that the source leaves open, and [] the source's "
                "training settings, which a preset does not set:"
            )
        )
        parts.append(table(["keyword", *method.presets], *rows))
        parts.append("".join(_wrapped(f"- {note}", "  ") for note in preset_notes(method)))
    if description["measured"]:
        parts.append(_wrapped(f"Measurements: {setting()}."))
        parts.append(table(*measured_rows(description["measured"])))
    return "\n".join(parts)


def _keyword_table(
    description: dict[str, Any], arguments_text: str, parameters: Mapping[str, inspect.Parameter]
) -> list[str]:
    """The table of a method's or a rule's keywords in a list, which is empty if there are none."""
    meanings = {
        match[1]: " ".join(match[2].split())
        for match in re.finditer(r"^(\w+): (.*(?:\n +.*)*)", dedent(arguments_text), re.MULTILINE)
    }
    rows = []
    for keyword in description["keywords"]:
        name = keyword["name"]
        about = _small(_kind(parameters[name].annotation), value(keyword["default"]))
        rows.append([f"`{name}`", meanings[name] + about])
    return [table(["keyword", "meaning"], *rows)] if rows else []


def _wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines of at most 104 characters, with `indent` from the second line on."""
    return fill(text, 104, subsequent_indent=indent, break_on_hyphens=False) + "\n"


MAKERS: dict[str, Callable[..., str]] = {
    maker.__name__: maker
    for maker in (
        *(verb, defaults, owned, refused, methods, rules, treatments),
        *(function, members),
    )
}


def main() -> None:
    changed = []
    for path in sorted(DOCS.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        new_page = with_tables(page)
        if new_page != page:
            path.write_text(new_page, encoding="utf-8")
            changed.append(path.name)
    print("changed in docs/:", ", ".join(changed) or "nothing")


if __name__ == "__main__":
    main()
