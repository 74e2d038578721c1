"""Damages every file of a small lineage in turn, and prints which verbs notice.

    python benchmarks/durability/damage.py [--whole] [--flips N]

Each file is removed, emptied, loses its last byte, and has one bit flipped, at N places. A verb may
refuse (`error`), report it (`found`), or give what it gives without the damage (`same`). Anything
else is a fault: another result without a word (`SILENT`), or a traceback (`TRACEBACK`). The status
is 1 if there is a fault, or if `verify` does not find a damage.
"""

import argparse
import contextlib
import io
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from small_lineage import TASKS, learn, make_lineage, workplace

from perdure import PerdureError, api


# The files that no verb needs to be as they were written: who is writing, the times, and what shows
# the settings of the ledger to readers.
FREE = ("lock", "timings.json", "lineage.yaml")


def flip(content: bytes, bit: int) -> bytes:
    """Return a content with one bit flipped."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def damages(file: Path, flips: int, generator: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """Yield each damage to a file: its name, and the file's new content (None removes the file)."""
    content = file.read_bytes()
    yield "removed", None
    if not content:
        return
    yield "emptied", b""
    yield "last byte lost", content[:-1]
    for _ in range(flips):
        bit = generator.randrange(len(content) * 8)
        yield f"bit {bit} flipped", flip(content, bit)


def answers(lineage: str) -> Any:
    """Ask the newest stage."""
    return api.answer(lineage, ["question the alpha = answer : ", "question the delta = answer : "])


def exported(lineage: str) -> Any:
    """Export the newest stage, and return the hashes of the model."""
    from perdure.models.hashing import file_hash

    with tempfile.TemporaryDirectory() as folder:
        out = api.export(lineage, Path(folder) / "model")
        return {file.name: file_hash(file) for file in out.iterdir() if file.suffix != ".md"}


def learned(lineage: str) -> Any:
    """Learn the last task, and return the hashes of its stage."""
    return learn(lineage, TASKS[-1])["files"]


VERBS: dict[str, Callable[[str], Any]] = {
    "verify": api.verify,
    "log": lambda lineage: [{**line, "seconds": 0, "date": 0} for line in api.log(lineage)],
    "show": lambda lineage: {
        key: value
        for key, value in api.show(lineage, flips=True).items()
        if key not in ("seconds", "date", "steps", "rehearsed")
    },
    "try": answers,
    "evaluate": api.evaluate,
    "export": exported,
    "learn": learned,
}


def outcome(verb: str, damaged: Path, expected: Any) -> str:
    """Run a verb on a copy of a damaged lineage, and say how it ended."""
    copy = Path("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(damaged, copy)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            result = VERBS[verb]("copy")
    except PerdureError:
        return "error"
    except Exception as error:
        return f"TRACEBACK {type(error).__name__}"
    if verb == "verify":
        return "found" if result else "same"
    return "same" if result == expected else "SILENT"


def try_all(
    whole: bool, flips: int, verbs: list[str], files: str
) -> list[tuple[str, str, str, str]]:
    """Return (file, damage, verb, outcome) for all damages; the working directory is scratch."""
    workplace(Path())
    lineage = Path("copy")  # the same name as the copies, because some outputs have it
    make_lineage("copy", TASKS[:2], whole=whole)
    intact = lineage.rename("intact")
    expected = {}
    for verb in verbs:
        shutil.rmtree("copy", ignore_errors=True)
        shutil.copytree(intact, "copy")
        expected[verb] = VERBS[verb]("copy")
    generator, results = random.Random(0), []
    names = sorted(p.relative_to(intact) for p in intact.rglob(files) if p.is_file())
    for name in names:
        for damage, content in damages(intact / name, flips, generator):
            damaged = Path("damaged")
            shutil.rmtree(damaged, ignore_errors=True)
            shutil.copytree(intact, damaged)
            if content is None:
                (damaged / name).unlink()
            else:
                (damaged / name).write_bytes(content)
            results += [
                (str(name), damage, verb, outcome(verb, damaged, expected[verb])) for verb in verbs
            ]
    return results


def faults(results: list[tuple[str, str, str, str]]) -> list[tuple[str, str, str, str]]:
    """Return the results that must not be."""
    return [
        (name, damage, verb, ending)
        for name, damage, verb, ending in results
        if ending not in ("same", "error", "found")
        or (verb == "verify" and ending == "same" and name not in FREE)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--whole", action="store_true", help="a lineage of whole weights")
    parser.add_argument("--flips", type=int, default=3, help="flipped bits of each file")
    parser.add_argument("--verbs", nargs="+", default=list(VERBS), choices=list(VERBS))
    parser.add_argument("--files", default="*", help="the files to damage, as a pattern")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        results = try_all(arguments.whole, arguments.flips, arguments.verbs, arguments.files)
    for name in dict.fromkeys(result[0] for result in results):
        of_file = [result for result in results if result[0] == name]
        print(f"{name}  ({len({damage for _, damage, _, _ in of_file})} damages)")
        for verb in arguments.verbs:
            counts = Counter(ending for _, _, v, ending in of_file if v == verb)
            print(f"    {verb:10}", ", ".join(f"{n} {ending}" for ending, n in counts.items()))
    wrong = faults(results)
    for fault in wrong:
        print("FAULT", *fault, sep="  ")
    print(f"{len(results)} runs of a verb on a damaged lineage, {len(wrong)} faults")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
