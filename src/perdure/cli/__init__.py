"""The command line. Nothing here imports torch: a verb does, once it has something to do."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.core import TyperGroup

from perdure.cli import (
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
    report,
    revert,
    run,
    show,
    try_,
    verify,
)
from perdure.cli.output import complain
from perdure.errors import PerdureError
from perdure.places import where_it_goes


RESUMED = ("learn", "run", "compare")
SET = ("init", "learn", "run", "compare")  # the verbs that take settings
UsageError: Any = typer.BadParameter.__base__  # of click, or of typer's own copy of it


class _Verbs(TyperGroup):
    """Tells a mistake in one line with status 2, a stop at the keyboard with status 130."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (PerdureError, PermissionError) as error:
            complain(f"error: {error}")
            raise typer.Exit(2) from None
        except UsageError as error:
            option = getattr(error, "option_name", None)
            verb = ctx.invoked_subcommand
            if verb is None:  # no verb of that name
                raise
            if option is None:
                reason = " ".join(error.format_message().split()).rstrip(".")
                complain(f"error: {verb}: {reason}; see `perdure {verb} --help`")
            else:
                complain(f"error: {verb}: {_no_option(error, option)}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            resumed = ctx.invoked_subcommand in RESUMED
            goes_on = "; the same command goes on from here" if resumed else ""
            complain(f"stopped{goes_on}")
            raise typer.Exit(130) from None


def _no_option(error: Any, option: str) -> str:
    """An option that is not there, with the nearest one or the setting that it may mean."""
    key = option.lstrip("-").replace("-", "_")
    options = [p for parameter in error.ctx.command.params for p in parameter.opts if p[:1] == "-"]
    close = get_close_matches(option, options, n=1, cutoff=0.8)
    if close:
        return f"no option {option}; did you mean {close[0]}?"
    if error.ctx.info_name in SET:
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
app.command("run")(run.run)
app.command("compare")(compare.compare)
app.command("evaluate")(evaluate.evaluate)
app.command("probe")(probe.probe)
app.command("try")(try_.try_)
app.command("log")(log.log)
app.command("show")(show.show)
app.command("report")(report.report)
app.command("revert")(revert.revert)
app.command("verify")(verify.verify)
app.command("export")(export.export)
app.command("push")(push.push)
app.command("rebase")(rebase.rebase)
app.command("methods")(methods.methods)


def main(arguments: Sequence[str] | None = None) -> None:
    """The `perdure` command; ends in SystemExit."""
    app(arguments, prog_name="perdure")
