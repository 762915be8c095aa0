"""Runs ``rbvsr-run`` for a program that may end at any moment, such as the web page's server.

``python -m rbvsr_deploy.commands._tethered LOCK ARGUMENT...`` works like ``rbvsr-run ARGUMENT...``,
with two differences. It is interrupted, as by Ctrl-C, when its standard input ends, which also
happens when its parent is killed. And it holds the lock file, for which it first waits: a run
that is just ending never meets the one that resumes it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from rbvsr_deploy.commands._common import report
from rbvsr_deploy.commands._process import send_to_main
from rbvsr_deploy.files import try_lock

__all__ = ["main"]

_GRACE = 45.0
"""Seconds from the interruption to the end at the latest; unfinished work survives any end."""


_ended = threading.Event()
"""Set when the program that started this one has ended."""


def main() -> None:
    """Run the command with the arguments of this process."""
    lock, *arguments = sys.argv[1:]
    threading.Thread(target=_interrupt_at_end_of_input, daemon=True).start()
    with open(lock, "ab") as file:
        if not try_lock(file.fileno()):
            report("Waiting for an earlier run to end")
            while not try_lock(file.fileno()):
                if _ended.wait(0.1):
                    raise SystemExit(128 + signal.SIGINT)

        from rbvsr_deploy.commands.run import run

        run(arguments, prog_name="rbvsr-run")


def _interrupt_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    _ended.set()
    send_to_main(signal.SIGINT)
    time.sleep(_GRACE)
    os._exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
