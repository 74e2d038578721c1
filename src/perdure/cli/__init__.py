"""The command line. The module of a verb is imported when the verb is used."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

from perdure import processes
from perdure.errors import LOST, PerdureError, RefusedError
from perdure.lineage.dropped import just_deleted
from perdure.places import where_it_goes
from perdure.stopping import Terminated, handled
from perdure.writing import flush_output, in_one_line


# The verbs, each in the module of its name, and what `perdure --help` says of them.
VERBS = {
    "init": "Make a lineage: a folder whose stage 0 is the untouched base.",
    "learn": "Learn one more task as a new stage.",
    "adopt": "Record a checkpoint that was trained elsewhere as a stage.",
    "merge": "Merge checkpoints into a new model, or one more into a lineage.",
    "statistics": "Measure a checkpoint on rows, for rules of merging that weigh by it.",
    "pack": "Store a checkpoint as its difference from its base.",
    "unpack": "Restore a checkpoint from a pack.",
    "run": "Learn a stream of tasks one after another.",
    "compare": "Run methods on the same task orders and seeds.",
    "evaluate": "Score a stage on the tasks learned so far.",
    "check": "Check what a model has lost of its base's general ability.",
    "probe": "Probe the stages with rows outside the tasks.",
    "try": "Answer a prompt with a stage.",
    "chat": "Talk to the stages of a lineage.",
    "log": "List the history of a lineage, newest last.",
    "show": "Show a stage: what it learned, gained and lost.",
    "report": "Write a report of lineages: what was learned and forgotten.",
    "set": "Change settings of a lineage, from its next stage on.",
    "revert": "Go back to an earlier stage.",
    "verify": "Check every hash of a lineage.",
    "repair": "Restore what can be restored of a damaged lineage.",
    "compact": "Delete weights of earlier stages that can be learned again.",
    "export": "Write a stage as one plain model, with its card.",
    "push": "Upload a stage to the hub.",
    "rebase": "Record a new location of the base.",
    "methods": "List the methods, or show one.",
    "rules": "List the rules and treatments of `perdure merge`, or show one.",
}
OPTIONS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}
RESUMED = ("learn", "run", "compare", "merge", "pack", "unpack")
DRY_RUN = "--dry-run"
TRAINS = ("learn", "run")  # under a launcher, the other verbs are done by the main process alone
WITH_SETTINGS = ("init", "learn", "run", "compare", "set")
OUTPUT = "the output or a temporary file"  # if an error does not name what cannot be written
UsageError: Any = typer.BadParameter.__base__  # click's, or that of typer's copy of click


def _complain(line: str) -> None:
    """Print a line for the user to stderr."""
    from perdure.cli.output import complain

    complain(line)


class _Verbs(TyperGroup):
    """Reports mistakes (status 2), a refused stage (3) and stops (128 + signal) in a line each."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.commands: Any = _Commands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a line for each verb, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta[DRY_RUN] = DRY_RUN in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RefusedError as error:
            _complain(f"refused: {error}")
            raise typer.Exit(LOST) from None
        except PerdureError as error:
            _complain(f"error: {error}")
            raise typer.Exit(2) from None
        except UsageError as error:
            option = getattr(error, "option_name", None)
            verb = ctx.invoked_subcommand
            if verb is None:  # there is no verb of that name, and typer reports it
                raise
            if option is None:
                reason = " ".join(error.format_message().split()).rstrip(".")
                _complain(f"error: {verb}: {reason}; see `perdure {verb} --help`")
            else:
                _complain(f"error: {verb}: {_no_option(error, option)}")
            raise typer.Exit(2) from None
        except (KeyboardInterrupt, Terminated) as stopped:
            if ctx.meta[DRY_RUN]:
                _complain("stopped; nothing was written")
            else:
                can_resume = ctx.invoked_subcommand in RESUMED
                hint = "; repeat the same command to continue" if can_resume else ""
                _complain(f"{' '.join(['stopped', str(stopped)]).rstrip()}{hint}")
            status = stopped.status if isinstance(stopped, Terminated) else 130
            raise typer.Exit(status) from None
        except Exception as error:
            line = in_one_line(error, OUTPUT) or just_deleted(error)
            if line is None:
                raise
            _complain(f"error: {line}")
            raise typer.Exit(2) from None


def _no_option(error: Any, option: str) -> str:
    """The error for an unknown option, with the nearest option or the setting that may be meant."""
    key = option.lstrip("-").replace("-", "_")
    options = [p for parameter in error.ctx.command.params for p in parameter.opts if p[:1] == "-"]
    close = get_close_matches(option, options, n=1, cutoff=0.8)
    if close:
        return f"no option {option}; did you mean {close[0]}?"
    if error.ctx.info_name in WITH_SETTINGS:
        return f"no option {option}; settings are written KEY=VALUE: {where_it_goes(key)}"
    return f"no option {option}; valid: {', '.join(options)}"


def handler(verb: str) -> Callable[..., None]:
    """Import the function that runs a verb, with the options as its parameters."""
    name = {"set": "set_", "try": "try_"}.get(verb, verb)
    return getattr(importlib.import_module(f"perdure.cli.{name}"), name)


class _Commands(Mapping[str, Any]):
    """The command of each verb, which is made when it is first asked for."""

    def __init__(self):
        self.made: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)

    def __getitem__(self, verb: str) -> Any:
        if verb not in VERBS:
            raise KeyError(verb)
        if verb not in self.made:
            single = typer.Typer(**OPTIONS)
            single.command(verb)(handler(verb))
            self.made[verb] = typer.main.get_command(single)
        return self.made[verb]


app = typer.Typer(cls=_Verbs, no_args_is_help=True, **OPTIONS)


@app.callback(help="Keep a language model learning without forgetting.")
def perdure() -> None:
    """Only the verbs do something."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `perdure` command, which ends with SystemExit.

    Under a launcher, all processes run it together, and all end with the main one's status.
    """
    with handled():
        try:
            with processes.together():
                _run_once(arguments)
        except processes.EndedError as end:
            raise SystemExit(end.status) from None
        except PerdureError as error:  # another process has ended, or there is none
            _complain(f"error: {error}")
            raise SystemExit(2) from None


def _run_once(arguments: Sequence[str] | None) -> None:
    """Run the command in all processes, or in the main one alone if it does not train."""
    words = sys.argv[1:] if arguments is None else arguments
    verb = next((word for word in words if not word.startswith("-")), "")
    try:
        if processes.count() == 1 or (verb in TRAINS and DRY_RUN not in words):
            _run(arguments)
        elif verb == "compare":
            raise PerdureError(
                "compare: starts its own processes; run it without a launcher, with --jobs or --ray"
            )
        else:
            with processes.alone():
                _run(arguments)
    except SystemExit as end:
        line = flush_output()
        if line is None or end.code:
            raise
        _complain(f"error: {line}")
        raise SystemExit(2) from None


def _run(arguments: Sequence[str] | None) -> None:
    try:
        app(arguments, prog_name="perdure")
    except OSError as error:  # outside of a verb, such as --help with a full disk
        line = in_one_line(error, OUTPUT)
        if line is None:
            raise
        _complain(f"error: {line}")
        raise SystemExit(2) from None
