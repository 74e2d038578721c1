"""What stands in the blocks of a page, and how it is run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from command import perdure
from perdure.models.pins import DEFAULT


BLOCK = re.compile(
    r"(?:^<!-- (?:exits (\d+)|(prints)) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
NUMBER = re.compile(r"[-+]?\d[\d,.]*(?:e-?\d+)?(?: (?:[KMG]i)?B\b| s\b| min\b)?")
PRINTED = "printed"  # the language of a block that the commands before it print
SHELL = set("|<>&;$`*?")  # a line with one of these is for bash


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """A page's blocks: the exit status that each is said to have, its language, its text.

    The language of a ```text block after `<!-- prints -->` is PRINTED.
    """
    matches = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        (int(status or 0), PRINTED if prints else language, text)
        for status, prints, language, text in matches
    ]


def blocks_of(page: Path, language: str) -> list[str]:
    """The texts of a page's blocks in one language."""
    return [text for _, block_language, text in blocks(page) if block_language == language]


def commands(text: str) -> Iterator[str]:
    """A block's commands: lines with those that continue them, and their heredocs."""
    lines = iter(text.splitlines())
    for line in lines:
        command = line
        while command.endswith("\\"):
            command += "\n" + next(lines)
        if ends := re.search(r"<<-?\s*'?(\w+)'?", command):
            for content in lines:
                command += "\n" + content
                if content == ends[1]:
                    break
        if command.strip() and not command.startswith("#"):
            yield command + "\n"


def words(output: str) -> str:
    """An output without what differs from run to run: numbers, plurals, the widths of columns."""
    text = NUMBER.sub("0", output.replace("─", ""))
    return " ".join(re.sub(r"\b0 (\w+)s\b", r"0 \1", text).split())


def run_block(text: str, status: int = 0) -> str:
    """Run a block of bash, the verbs in this process and everything else by bash.

    Returns what its last command prints.
    """
    *before, last = commands(text)
    for command in before:
        run_command(command, 0)
    return run_command(last, status)


def run_command(command: str, status: int) -> str:
    """Run a command, check the status it ends with, and return what it prints."""
    if command.startswith("perdure ") and not SHELL & set(command):
        result = perdure(*shlex.split(command)[1:])
        exit_status, output = result.status, result.out + result.err
    else:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            ["bash", "-euc", command], capture_output=True, text=True, env=environment
        )
        exit_status, output = ran.returncode, ran.stdout + ran.stderr
    assert exit_status == status, (
        f"{command}ended with status {exit_status}, not {status}:\n{output}"
    )
    return output


def put_base(folder: Path) -> None:
    """The pages' base, under the name that the hub has for a real one: the embedded model."""
    shutil.copytree(DEFAULT, folder / "Qwen" / "Qwen3-0.6B")
