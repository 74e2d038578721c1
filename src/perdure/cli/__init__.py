"""The command line. Importing it does not import torch: a verb does so when it needs torch."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

from perdure.cli import (
    adopt,
    chat,
    check,
    compact,
    compare,
    evaluate,
    export,
    init,
    learn,
    log,
    methods,
    probe,
    push,
    rebase,
    repair,
    report,
    revert,
    run,
    set_,
    show,
    try_,
    verify,
)
from perdure.cli.output import LOST, complain
from perdure.errors import PerdureError, RefusedError
from perdure.places import where_it_goes
from perdure.stopping import Terminated, handled
from perdure.writing import flush_output, in_one_line


RESUMED = ("learn", "run", "compare")
WITH_SETTINGS = ("init", "learn", "run", "compare", "set")
OUTPUT = "the output or a temporary file"  # if an error does not name what cannot be written
UsageError: Any = typer.BadParameter.__base__  # click's, or that of typer's copy of click


class _Verbs(TyperGroup):
    """Reports mistakes (status 2), a refused stage (3) and stops (128 + signal) in a line each."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RefusedError as error:
            complain(f"refused: {error}")
            raise typer.Exit(LOST) from None
        except PerdureError as error:
            complain(f"error: {error}")
            raise typer.Exit(2) from None
        except UsageError as error:
            option = getattr(error, "option_name", None)
            verb = ctx.invoked_subcommand
            if verb is None:  # there is no verb of that name, and typer reports it
                raise
            if option is None:
                reason = " ".join(error.format_message().split()).rstrip(".")
                complain(f"error: {verb}: {reason}; see `perdure {verb} --help`")
            else:
                complain(f"error: {verb}: {_no_option(error, option)}")
            raise typer.Exit(2) from None
        except (KeyboardInterrupt, Terminated) as stopped:
            can_resume = ctx.invoked_subcommand in RESUMED
            hint = "; repeat the same command to continue" if can_resume else ""
            complain(f"{' '.join(['stopped', str(stopped)]).rstrip()}{hint}")
            status = stopped.status if isinstance(stopped, Terminated) else 130
            raise typer.Exit(status) from None
        except Exception as error:
            line = in_one_line(error, OUTPUT)
            if line is None:
                raise
            complain(f"error: {line}")
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


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Keep a language model learning without forgetting.",
)
app.command("init")(init.init)
app.command("learn")(learn.learn)
app.command("adopt")(adopt.adopt)
app.command("run")(run.run)
app.command("compare")(compare.compare)
app.command("evaluate")(evaluate.evaluate)
app.command("check")(check.check)
app.command("probe")(probe.probe)
app.command("try")(try_.try_)
app.command("chat")(chat.chat)
app.command("log")(log.log)
app.command("show")(show.show)
app.command("report")(report.report)
app.command("set")(set_.set_)
app.command("revert")(revert.revert)
app.command("verify")(verify.verify)
app.command("repair")(repair.repair)
app.command("compact")(compact.compact)
app.command("export")(export.export)
app.command("push")(push.push)
app.command("rebase")(rebase.rebase)
app.command("methods")(methods.methods)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `perdure` command, which ends with SystemExit."""
    with handled():
        try:
            _run(arguments)
        except SystemExit as end:
            line = flush_output()
            if line is None or end.code:
                raise
            complain(f"error: {line}")
            raise SystemExit(2) from None


def _run(arguments: Sequence[str] | None) -> None:
    try:
        app(arguments, prog_name="perdure")
    except OSError as error:  # outside of a verb, such as --help with a full disk
        line = in_one_line(error, OUTPUT)
        if line is None:
            raise
        complain(f"error: {line}")
        raise SystemExit(2) from None
