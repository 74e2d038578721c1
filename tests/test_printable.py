"""Text is shown, and not obeyed: by a terminal, in JSON, in a report and in a log."""

import ast
import json
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

import perdure
from perdure.cli import output
from perdure.printable import printable


pytestmark = pytest.mark.own


EVIL = "a\x1b[2J\x9b\x07\r\u202e\u2066\u2028\x7f\ud800b"
SHOWN = r"a\x1b[2J\x9b\x07\r\u202e\u2066\u2028\x7f\ud800b"


def test_what_a_terminal_obeys_is_written_out():
    assert printable(EVIL) == SHOWN
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("a\tb\nc", lines=False) == r"a\tb\nc"
    assert printable(SHOWN) == SHOWN


@pytest.mark.parametrize(
    "text",
    ["grüße, 你好, שלום, العربية", "\N{FAMILY}\u200d\N{BOY}", "می\u200cخواهم", "\u200f-"],
)
def test_all_scripts_stay_as_they_are(text):
    assert printable(text) == text


def test_each_way_to_the_terminal(capsys):
    table = Table(EVIL)
    table.add_row(Text(EVIL))
    output.stdout().print(table)
    output.stdout().print(EVIL)
    output.print_part(EVIL)
    output.print_json({EVIL: EVIL})
    output.stderr().print(Text(EVIL))
    output.stderr_line(EVIL)
    output.complain(EVIL)
    shown = "".join(capsys.readouterr())
    assert not set(shown) & (set(EVIL) - set("a[2Jb"))
    assert shown.count(r"\x1b[2J") == 5  # JSON has it as \u001b, and the table cuts it


def test_json_means_the_same(capsys):
    output.print_json({"name": EVIL, "lines": "a\n\tb"})
    assert json.loads(capsys.readouterr().out) == {"name": EVIL, "lines": "a\n\tb"}


def test_colours_are_the_consoles_own(monkeypatch):
    console = output._Console(force_terminal=True, color_system="standard", markup=False)
    with console.capture() as capture:
        console.print(Text("a\x1bb", style="red"))
    assert capture.get() == "\x1b[31ma\\x1bb\x1b[0m\n"


# What prints; what answers another process in a pipe; and what one of several processes says, made
# printable, when the one that prints has gone.
OTHER_WAYS = ("cli/output.py", "data/parquet_sizes.py", "processes.py")


def test_there_is_no_other_way_to_the_terminal():
    """Only `cli/output.py` prints; what the package calls elsewhere goes through it."""
    root = Path(perdure.__file__).parent
    for file in sorted(root.rglob("*.py")):
        if file.relative_to(root).as_posix() in OTHER_WAYS:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("print", "Console"), (file, node.lineno)
                assert not called.endswith(("echo", "stdout.write", "stderr.write")), file
