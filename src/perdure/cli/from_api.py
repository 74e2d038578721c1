"""Makes commands from the signatures of `perdure.api`: arguments, options, defaults and help.

A parameter without a default becomes an argument, and any other an option; the settings become
`KEY=VALUE` arguments. Keyword-only parameters can only be used in Python and are left out.
"""

import inspect
import re
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent
from types import NoneType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer


Arguments = dict[str, Any]  # the typed values and the defaults, by the names of the parameters

NONE = (inspect.Parameter.empty, None, (), [])
REPEATED = " May be given more than once."


def command(verb: Callable[..., Any], **spelled: str) -> Callable[[Callable], Callable]:
    """Turn `handler(arguments, ...)` into the command of a verb, for `typer.Typer.command`.

    The handler calls the verb with `arguments` and prints what it returns. Its other parameters are
    options that only the command line has. Its docstring is shown below the verb's summary.

    Args:
        verb: A function of `perdure.api`.
        spelled: How parameters are written on the command line, if not by their own names:
            `rows="FILE"` for an argument, `from_adapter="--adapter FOLDER"` for an option.
    """
    summary, meanings = described(verb)
    from_verb = {
        name: _parameter(parameter, meanings.get(name, ""), spelled.get(name))
        for name, parameter in inspect.signature(verb).parameters.items()
        if parameter.kind is not parameter.KEYWORD_ONLY
    }

    def decorate(handler: Callable) -> Callable:
        extra = list(inspect.signature(handler).parameters.values())[1:]
        parameters = [*from_verb.values(), *(p.replace(kind=p.KEYWORD_ONLY) for p in extra)]

        def run(**values: Any) -> None:
            arguments = {name: values[name] for name in from_verb if values[name] not in NONE}
            handler(arguments, **{parameter.name: values[parameter.name] for parameter in extra})

        run.__name__ = verb.__name__
        run.__doc__ = f"{summary}\n\n{inspect.getdoc(handler)}"
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def described(function: Any) -> tuple[str, dict[str, str]]:
    """The first paragraph of a Google-style docstring, and the meaning of each of its `Args`."""
    text = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?: .*\n?|\n)+)", text, re.MULTILINE)
    entries = re.finditer(
        r"^\*{0,2}(\w+): (.*(?:\n +.*)*)", dedent(section[1]) if section else "", re.MULTILINE
    )
    return text.partition("\n\n")[0], {entry[1]: " ".join(entry[2].split()) for entry in entries}


def _parameter(
    parameter: inspect.Parameter, meaning: str, spelled: str | None
) -> inspect.Parameter:
    """A verb's parameter as a parameter of its command."""
    is_settings = parameter.kind is parameter.VAR_KEYWORD
    kind, choices = (list[str], None) if is_settings else _kind(parameter.annotation)
    required = parameter.default is parameter.empty and not is_settings
    name, _, metavar = (spelled or _spelled(parameter, kind)).partition(" ")
    if name.endswith("...") and kind is str:  # numbers, a word each where they are an argument
        kind = list[int]
    info: Any
    if name.startswith("--"):
        help_text = meaning + REPEATED if get_origin(kind) is list else meaning
        info = typer.Option(name, metavar=metavar or choices, help=help_text)
    else:
        info = typer.Argument(metavar=name, help=meaning)
    default: Any = parameter.default
    if is_settings or (not required and default in NONE):
        kind, default = kind | None, None
    elif kind is Path and not required:
        default = Path(default)
    return inspect.Parameter(
        parameter.name,
        parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, info],
    )


def _spelled(parameter: inspect.Parameter, kind: Any) -> str:
    """How a parameter is written by default."""
    if parameter.kind is parameter.VAR_KEYWORD:
        return "[KEY=VALUE]..."
    if parameter.default is parameter.empty:
        return parameter.name.upper()
    name = parameter.name.removesuffix("s") if get_origin(kind) is list else parameter.name
    return f"--{name.replace('_', '-')}"


def _kind(annotation: Any) -> tuple[Any, str | None]:
    """The type of an annotation on the command line, and how its choices are written.

    Choices are only shown: the verb itself refuses other values, and names the nearest choice.
    """
    is_union = get_origin(annotation) in (types.UnionType, Union)
    members = [m for m in get_args(annotation) if m is not NoneType] if is_union else [annotation]
    by_origin = {get_origin(member) or member: member for member in members}
    if Literal in by_origin:
        return str, "|".join(get_args(by_origin[Literal]))
    if Sequence in by_origin:
        item, _ = _kind(get_args(by_origin[Sequence])[0])
        # Other sequences are rows, typed as a file or an address, or numbers, typed as 0,2,5.
        return (list[item] if item in (str, Path) else str), None
    if dict in by_origin:  # KEY=VALUE, or a file that contains the mapping
        return (Path if Path in by_origin else list[str]), None
    return (Path if Path in by_origin else members[0]), None
