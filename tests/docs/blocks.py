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


BLOCK = re.compile(r"(?:^<!-- exits (\d+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = set("|<>&;$`*?")  # a line with one of these is for bash


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """A page's blocks: the exit status that each is said to have, its language, its text."""
    matches = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(int(status or 0), language, text) for status, language, text in matches]


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


def run_block(text: str, status: int = 0) -> None:
    """Run a block of bash: the verbs in this process, everything else by bash."""
    *before, last = commands(text)
    for command in before:
        run_command(command, 0)
    run_command(last, status)


def run_command(command: str, status: int) -> None:
    """Run a command, and check the status it ends with."""
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


def put_base(folder: Path) -> None:
    """The pages' base, under the name that the hub has for a real one: the embedded model."""
    shutil.copytree(DEFAULT, folder / "Qwen" / "Qwen3-0.6B")
