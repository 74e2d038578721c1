"""Gives every reader of files damaged and hostile ones, and counts what it does with them.

    python benchmarks/durability/fuzz.py [READER ...] [--inputs N] [--seed S] [--faults FOLDER]

A reader is a function by which the package reads a file that a stranger or damage may have written,
with what a verb then does with the content before a model is loaded. Its inputs are first the bombs
(`fuzz_inputs.py`), then a valid file in which values, keys and bytes were changed at random. Input
number I is the same whenever the seed is the same. A reader may read an input (`read`), or refuse
it with one line (`refused`). Everything else is a fault: another exception, more than 5 seconds,
or more than 1 GiB of memory. The inputs run in child processes, which
are killed if they hang. FOLDER gets the input of each fault.

The results are written to `benchmarks/results/fuzz.json`, in which the readers that were not run
keep their last result. The status is 1 if there is a fault.
"""

import argparse
import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

from fuzz_inputs import input_of
from fuzz_readers import READERS, Reader, place

from perdure.errors import PerdureError
from perdure.reporting.results import device, load, write
from perdure.writing import in_one_line


RESULTS = Path(__file__).parents[1] / "results" / "fuzz.json"
SLOW = 5  # seconds that an input may take
HUNG = 30  # seconds after which a process that is still at one input is killed
MEMORY = 1 << 30  # bytes that a process may have beside what it has at its start
CHUNK = 5000  # inputs of a process


@dataclass(frozen=True)
class Fault:
    """An input that a reader neither read nor refused with one line."""

    reader: str
    number: int
    what: str


def outcome(reader: Reader, content: bytes) -> str:
    """Give a reader one input, and say what it did."""
    file = reader.path()
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
    file.write_bytes(content)
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(file)
        what = "read"
    except PerdureError as error:
        what = "refused" if str(error).strip() else "an error without a line"
    except OSError as error:  # of which the commands, too, make a line
        what = "refused" if in_one_line(error) else f"{type(error).__name__}: {error}"
    except MemoryError:
        what = "more memory than the limit"
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        lines = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "perdure" in f.filename]
        what = f"{type(error).__name__} at {lines[-1] if lines else '?'}: {str(error)[:100]}"
    if time.process_time() - began > SLOW:
        what = f"slower than {SLOW} s ({what})"
    return what


def run(reader: Reader, first: int, last: int, seed: int) -> tuple[Counter[str], list[Fault]]:
    """Give a reader inputs in this process; return the numbers of outcomes, and the faults."""
    counts: Counter[str] = Counter()
    faults = []
    for number in range(first, last):
        what = outcome(reader, input_of(reader, number, seed))
        counts[what if what in ("read", "refused") else "faults"] += 1
        if what not in ("read", "refused"):
            faults.append(Fault(reader.name, number, what))
    return counts, faults


def _child(reader: Reader, first: int, last: int, seed: int, at: Any, results: Any) -> None:
    """Run inputs with a limit of memory, and send their results, one by one if they are faults."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    counts: Counter[str] = Counter()
    with place():
        for number in range(first, last):
            at.value = number
            part, faults = run(reader, number, number + 1, seed)
            counts += part
            for fault in faults:
                results.put(fault)
    results.put(counts)


def run_in_children(reader: Reader, inputs: int, seed: int) -> tuple[Counter[str], list[Fault]]:
    """Give a reader inputs in child processes, which are killed if they hang."""
    context = multiprocessing.get_context("fork")
    counts: Counter[str] = Counter()
    faults: list[Fault] = []
    first = 0
    while first < inputs:
        last = min(first + CHUNK, inputs)
        at, results = context.Value("q", first), context.Queue()
        child = context.Process(target=_child, args=(reader, first, last, seed, at, results))
        child.start()
        seen, since, part = first, time.monotonic(), None
        while part is None:
            with contextlib.suppress(Exception):
                received = results.get(timeout=0.5)
                if isinstance(received, Fault):
                    faults.append(received)
                else:
                    part = received
                continue
            if at.value != seen:
                seen, since = at.value, time.monotonic()
            hung = time.monotonic() - since > HUNG
            if hung or not child.is_alive():
                child.kill()
                what = "hung" if hung else "the process died"
                faults.append(Fault(reader.name, at.value, what))
                # Those before it were read or refused; they are run again to be counted.
                part, last = Counter({"faults": 1}), at.value + 1
                if at.value > first:
                    more, _ = run_in_children_once(reader, first, at.value, seed)
                    part += more
        child.join()
        counts += part
        first = last
    return counts, faults


def run_in_children_once(
    reader: Reader, first: int, last: int, seed: int
) -> tuple[Counter[str], list[Fault]]:
    """Count inputs again that are known not to hang."""
    with place():
        return run(reader, first, last, seed)


def keep(reader: Reader, fault: Fault, seed: int, folder: Path) -> None:
    """Write the input of a fault into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{reader.name}-{fault.number}{''.join(reader.path().suffixes)}"
    (folder / name).write_bytes(input_of(reader, fault.number, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=Path, help="a new folder for the inputs of faults")
    arguments = parser.parse_args()
    if unknown := set(arguments.readers) - set(READERS):
        parser.error(f"no reader {', '.join(unknown)}; the readers are {', '.join(READERS)}")
    records = {record["method"]: record for record in load(RESULTS)}
    found = 0
    for name in arguments.readers or READERS:
        reader, began = READERS[name], time.monotonic()
        counts, faults = run_in_children(reader, arguments.inputs, arguments.seed)
        seconds = time.monotonic() - began
        found += len(faults)
        print(
            f"{name:16} {counts['read']:7} read {counts['refused']:7} refused "
            f"{counts['faults']:4} faults  {seconds:6.0f} s",
            flush=True,
        )
        for what, number in Counter(fault.what for fault in faults).most_common(20):
            example = next(fault.number for fault in faults if fault.what == what)
            print(f"    FAULT {number} x {what} (input {example})", flush=True)
        for fault in faults if arguments.faults else ():
            keep(reader, fault, arguments.seed, arguments.faults)
        records[name] = {
            "method": name,
            "order": "",
            "seed": arguments.seed,
            "inputs": arguments.inputs,
            **{what: counts[what] for what in ("read", "refused", "faults")},
            "seconds": round(seconds, 1),
        }
        ordered = [records[other] for other in READERS if other in records]
        command = f"python benchmarks/durability/fuzz.py --inputs {arguments.inputs}"
        write(RESULTS, "fuzz", command, device(1), ordered)
    raise SystemExit(bool(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        main()
