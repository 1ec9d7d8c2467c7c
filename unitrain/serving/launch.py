"""Replaces itself with the program in argv, which ends, with all its children, when its parent ends.

Run as a script by `process.py`. The request to the kernel (PR_SET_PDEATHSIG) survives exec; made here
rather than between fork and exec of the supervisor, it is safe beside the supervisor's threads. It does
not reach the program's own children, and Triton's sometimes outlive it: a guard in the same process group
sees to them, and runs the command after `--at-end` (a JSON list), which ends what is in a container.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time

_PR_SET_PDEATHSIG = 1
_LOOK_S = 0.5


def main() -> None:
    """Bind the life of this process group to the parent's, then become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    at_end: list[str] = []
    if program[0] == "--at-end":
        at_end, program = json.loads(program[1]), program[2:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request was made
        sys.exit(1)
    guarded = os.getpid()
    if os.fork() == 0:
        _guard(guarded, at_end)
    os.execv(program[0], program)  # noqa: S606 - starting a program is the purpose


def _guard(guarded: int, at_end: list[str]) -> None:
    """Wait for the end of the process `guarded`, this one's parent, and kill what is left of its group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # a kernel without pidfd: look now and then
        handle = os.pidfd_open(guarded)
        if os.getppid() == guarded:
            select.select([handle], [], [])
    while os.getppid() == guarded:
        time.sleep(_LOOK_S)
    if at_end:
        with contextlib.suppress(OSError):
            os.spawnv(os.P_WAIT, at_end[0], at_end)  # noqa: S606 - as above
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
