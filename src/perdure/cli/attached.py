"""`python -m perdure.cli.attached VERB ...` is `perdure VERB ...` for a process that waits for it.

Its standard input is a pipe, to which nothing is written. The pipe ends with the process at its
other end, also if that was killed and could not stop this one, which then receives SIGTERM.
"""

import os
import signal
import threading

from perdure.cli import main


def stop_with_the_pipe() -> None:
    """Wait for the end of the standard input, and then ask this process to stop."""
    while os.read(0, 1):  # sys.stdin would be locked by this thread when Python ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=stop_with_the_pipe, daemon=True).start()
    main()
