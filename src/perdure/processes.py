"""Several processes that learn one lineage together, under `torchrun` or `accelerate launch`.

The main process (`RANK` 0) does what a single one would do: it locks the lineage, scores, writes
and prints. The others take part in the training only. Between two trainings they wait for its
messages, which go through the store where the processes have met, not through collectives: these
would end after a timeout, and would not let a signal stop a process that waits.

Without a launcher, all functions do what they do for one process.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from perdure.errors import LOST, PerdureError, RefusedError, one_line
from perdure.printable import printable
from perdure.say import Say
from perdure.stopping import Terminated


PAUSE = 0.1  # seconds between two looks at the store
MEETING = 600.0  # seconds until all processes must have been started
LAST_WORDS = 10.0  # seconds that a process with an error waits for the error of another one
WATCHER = "perdure-watcher"  # the thread that ends a process if the main one is gone
OVERTIME = 20.0  # seconds after the main process's error until the others are ended

# Variables of the launchers, without which a process is one on its own.
LAUNCHERS = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_", "TORCHELASTIC_")
ONE_OF = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL")


def count() -> int:
    """Return how many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def index() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def is_main() -> bool:
    """Return whether this is the process that writes and prints."""
    return index() == 0


def shard_weights() -> bool:
    """Return whether the weights are spread over the processes (FSDP2), not copied to each."""
    return count() > 1 and is_on("ACCELERATE_USE_FSDP")


def is_on(variable: str) -> bool:
    """Return whether a variable of the environment is set to true."""
    return os.environ.get(variable, "").strip().lower() in ("1", "true")


def are_apart() -> bool:
    """Return whether several processes were launched, but are not in a block `together`."""
    return count() > 1 and _crew is None


class EndedError(Exception):
    """The main process has ended with an error, so the other ones end as well."""

    def __init__(self, end: Mapping[str, Any]):
        self.status: int = end["status"]
        self.line: str = end["line"]
        super().__init__(self.line)

    def as_error(self) -> BaseException:
        """Return an error of the kind that the main process had, for a caller in Python."""
        if self.status == LOST:
            return RefusedError(self.line)
        return PerdureError(self.line) if self.status == 2 else SystemExit(self.status)


class Crew:
    """The processes that were launched together, and their messages in a block `together`.

    Messages have numbers. Every process asks for them in the same order.
    """

    def __init__(self) -> None:
        from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

        _crew_numbers.append(len(_crew_numbers))
        self.store: Any = PrefixStore(f"perdure/{len(_crew_numbers)}", _meeting_place())
        self.messages = 0
        self.complaint = ""  # the error line of this process, if another one prints a better one
        self.over = threading.Event()  # set when the block has ended in this process

    def tell(self, message: Any) -> None:
        """Send a message to all other processes. Only the main process may do so."""
        self.store.set(f"message/{self._next()}", json.dumps(message))

    def hear(self) -> Any:
        """Wait for the next message of the main process; None if it has ended without an error.

        Raises:
            EndedError: the main process has ended with an error.
        """
        key = f"message/{self._next()}"
        while not self.store.check([key]):
            end = self.end()
            if end is not None and end["status"]:
                raise EndedError(end)
            if end is not None and not self.store.check([key]):
                return None
            time.sleep(PAUSE)
        return json.loads(self.store.get(key))

    def meet(self) -> None:
        """Wait until all processes are here.

        Raises:
            PerdureError: one of the others has ended with an error (in the main process).
            EndedError: the main process has (in the others).
        """
        key = f"here/{self._next()}"
        self.store.set(f"{key}/{index()}", "")
        others = [f"{key}/{number}" for number in range(count())]
        while not self.store.check(others):
            if is_main():
                self.check_others()
            else:
                end = self.end()
                if end is not None:
                    raise EndedError(end)
            time.sleep(PAUSE)

    def check_others(self) -> None:
        """Check in the main process that no other one has ended with an error.

        Raises:
            PerdureError: one has.
        """
        for number in range(1, count()):
            if self.store.check([f"failed/{number}"]):
                line = self.store.get(f"failed/{number}").decode()
                raise PerdureError(f"process {number}: {line}")

    def end(self) -> dict[str, Any] | None:
        """Return how the main process has ended, None if it has not."""
        if not self.store.check(["end"]):
            return None
        self.store.set(f"heard/{index()}", "")
        return json.loads(self.store.get("end"))

    def wait_for(self, look: Callable[[], Any], seconds: float) -> Any:
        """Return what `look` finds, None if it finds nothing in some seconds or a signal comes."""
        last = time.monotonic() + seconds
        try:
            while (found := look()) is None and time.monotonic() < last:
                time.sleep(PAUSE)
        except (KeyboardInterrupt, Terminated):
            return None
        return found

    def _next(self) -> int:
        self.messages += 1
        return self.messages


_crew: Crew | None = None
_crew_numbers: list[int] = []  # one for each block `together`, which gives it its own messages
_place: Any = None


def _meeting_place() -> Any:
    """Return the store where the processes of a launch meet.

    Raises:
        PerdureError: the variables of a launcher are missing, or the main process is not there.
    """
    global _place
    if _place is None:
        from torch.distributed.rendezvous import rendezvous

        missing = [name for name in ONE_OF if name not in os.environ and name[:5] != "LOCAL"]
        if missing:
            raise PerdureError(
                f"several processes: WORLD_SIZE is {count()}, but {' and '.join(missing)} not set; "
                "start them with torchrun or accelerate launch"
            )
        try:
            meeting = rendezvous("env://", timeout=timedelta(seconds=MEETING))
            _place, _, _ = next(iter(meeting))
        except (RuntimeError, ValueError) as error:
            raise PerdureError(
                f"several processes: they do not meet at {os.environ['MASTER_ADDR']}:"
                f"{os.environ['MASTER_PORT']} ({one_line(error)}); start all of them"
            ) from error
    return _place


@contextmanager
def together() -> Iterator[None]:
    """Let all processes of a launch do a block, and end it alike.

    Raises:
        EndedError: the main process has ended it with an error (in the others).
        PerdureError: another process has, or the connection to it is lost (in the main one).
    """
    global _crew
    if count() == 1 or _crew is not None:
        yield
        return
    crew = _crew = Crew()
    if shard_weights():
        # Otherwise transformers would load the weights in the main process only.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    watcher = threading.Thread(target=_watch, args=[crew], name=WATCHER, daemon=True)
    if not is_main():
        watcher.start()
    try:
        yield
    except BaseException as error:
        told = _error_of_main(crew, error) if is_main() else _error_of_another(crew, error)
        if told is error:
            raise
        raise told from error
    else:
        if is_main():
            _end(crew, 0, "")
    finally:
        _crew = None
        crew.over.set()
        if not is_main():
            # A thread that asks the store while the interpreter ends would abort the process.
            watcher.join(LAST_WORDS)


def _error_of_main(crew: Crew, error: BaseException) -> BaseException:
    """Tell the others that the main process has an error; return the one to raise."""
    if is_lost(error):
        try:
            crew.wait_for(crew.check_others, LAST_WORDS)
            error = PerdureError("another process has ended; repeat the same command to continue")
        except PerdureError as cause:
            error = cause
    _end(crew, _status(error), str(error))
    return error


def _error_of_another(crew: Crew, error: BaseException) -> BaseException:
    """Tell the main process of an error in another one; return the error to raise."""
    if isinstance(error, EndedError):
        return error
    end = None
    with suppress(RuntimeError):  # the store was in the main process, which is gone
        if not is_lost(error) and _status(error):
            crew.store.set(f"failed/{index()}", crew.complaint or _line(error))
        end = crew.wait_for(crew.end, LAST_WORDS)
    if end and end["status"]:
        return EndedError(end)
    if is_lost(error):
        return PerdureError("the main process has ended; repeat the same command to continue")
    if crew.complaint:
        complaint = printable(crew.complaint, lines=False)
        sys.stderr.write(f"perdure: process {index()}: {complaint}\n")
    return error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, PerdureError) else f"{type(error).__name__}: {text}"


def _end(crew: Crew, status: int, line: str) -> None:
    """Say how the main process ends, and wait for a moment until the others have heard it.

    The store is in this process if no launcher keeps it.
    """
    crew.store.set("end", json.dumps({"status": status, "line": line}))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        heard = [f"heard/{number}" for number in range(1, count())]
        crew.wait_for(lambda: crew.store.check(heard) or None, LAST_WORDS)


def _status(error: BaseException) -> int:
    """Return the exit status that an error leads to."""
    if isinstance(error, Terminated):
        return error.status
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, RefusedError):
        return LOST
    return 2 if isinstance(error, PerdureError) else 1


def is_lost(error: BaseException) -> bool:
    """Return whether an error of a collective says that another process is gone."""
    if not isinstance(error, RuntimeError):
        return False
    return "Dist" in type(error).__name__ or any(words in str(error) for words in GONE)


def _watch(crew: Crew) -> None:
    """End this process if it waits in a collective for the main process, which has ended."""
    status = 0
    while not status:
        if crew.over.wait(1.0):
            return
        try:
            status = (crew.end() or {"status": 0})["status"]
        except RuntimeError:  # the store was in the main process
            status = 1
    if not crew.over.wait(OVERTIME):
        os._exit(status)


@contextmanager
def in_python() -> Iterator[None]:
    """As `together`, with the error of the main process in all processes."""
    try:
        with together():
            yield
    except EndedError as end:
        if _crew is not None:
            raise
        raise end.as_error() from None


@contextmanager
def alone() -> Iterator[None]:
    """Let only the main process do a block `together`, as if it were the only one."""
    global _crew
    if _crew is None:
        yield
        return
    if not is_main():
        while _crew.hear() is not None:
            pass
        raise SystemExit(0)
    launched = {name: os.environ[name] for name in [*os.environ] if _is_of_a_launcher(name)}
    for name in launched:
        del os.environ[name]
    crew, _crew = _crew, None
    try:
        yield
    finally:
        _crew = crew
        os.environ.update(launched)


def _is_of_a_launcher(name: str) -> bool:
    return name in ONE_OF or name.startswith(LAUNCHERS)


def complain(line: str) -> bool:
    """Keep an error line if this is not the main process, which has or will get a line of its own.

    Returns False if the line is to be printed.
    """
    if is_main() or _crew is None:
        return False
    _crew.complaint = line
    return True


def tell(message: Any) -> None:
    """Send a message to the other processes, which `hear` it, if there are any."""
    if _crew is not None:
        _crew.tell(message)


def hear() -> Any:
    """Wait for the next message of the main process; None if it has ended without an error.

    Raises:
        EndedError: it has ended with an error.
    """
    assert _crew is not None
    return _crew.hear()


def from_main(function: Callable[[], Any]) -> Any:
    """Return in all processes what a function returns in the main one, as JSON."""
    if _crew is None:
        return function()
    if is_main():
        value = function()
        _crew.tell([value])
        return value
    message = _crew.hear()
    assert message is not None, "the main process has ended in the middle of a stage"
    return message[0]


def meet() -> None:
    """Wait until all processes are here.

    Raises:
        PerdureError: one of the others has ended with an error.
        EndedError: the main process has.
    """
    if _crew is not None:
        _crew.meet()


@contextmanager
def leading(say: Say) -> Iterator[None]:
    """A block of the main process that tells the others at its end that nothing else follows.

    `say` is called with a note if there are others.
    """
    if _crew is not None:
        say(
            f"note: {count()} processes learn together, so a step has {count()} times the rows of "
            "one process; the weights are those of one process with such a batch up to rounding, "
            "but not to the bit"
        )
    yield
    tell(None)
