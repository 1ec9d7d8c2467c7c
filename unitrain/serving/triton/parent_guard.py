"""Guard script that runs a program and ends it, with all its children, when its parent ends.

`process.py` runs it. It requests a signal at the parent's end (PR_SET_PDEATHSIG), which survives exec, and
becomes the program. The signal does not reach the program's children, and those of Triton sometimes outlive it. A guard
in the same process group kills them, and runs the command after `--at-end` (a JSON list), which ends a container.

`--private-memory`: other users can't read the program's shared memory. Triton's Python backend opens its regions, which
hold inputs and outputs, to every user by fchmod(0644), whatever the umask. A seccomp filter turns that call into one
that does nothing.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import struct
import sys
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_SET_NO_NEW_PRIVS = 38
_POLL_INTERVAL_S = 0.5
_FCHMOD = {"x86_64": (0xC000003E, 91), "aarch64": (0xC00000B7, 52)}
"""Kernel's numbers of each architecture, and of its fchmod."""
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_RETURN_ZERO, _ALLOW = 0x00050000, 0x7FFF0000
_ARCHITECTURE_AT, _CALL_AT, _MODE_AT = 4, 0, 24
"""Offsets in the kernel's seccomp_data; the mode is the low half of the second argument."""
_OPEN_MODE = 0o644


def main() -> None:
    """End this process group with the parent, then become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    at_end: list[str] = []
    private = program[0] == "--private-memory"
    program = program[private:]
    if program[0] == "--at-end":
        at_end, program = json.loads(program[1]), program[2:]
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before the request
        sys.exit(1)
    guarded = os.getpid()
    if os.fork() == 0:
        _guard(guarded, at_end)
    if private:
        try:
            _keep_memory_private()
        except OSError as error:
            print(f"W0000 other users can read the shared memory of Python models: {error}", file=sys.stderr)
            sys.stderr.flush()
    os.execv(program[0], program)  # noqa: S606 - starting a program is the purpose


def _keep_memory_private() -> None:
    """Make fchmod(…, 0644) do nothing in this process and those that it starts.

    Raises:
        OSError: the kernel does not support the filter.
    """
    if os.uname().machine not in _FCHMOD:
        raise OSError(f"no number of fchmod is known for {os.uname().machine}")
    architecture, fchmod = _FCHMOD[os.uname().machine]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_JUMP_EQUAL, 0, 5, architecture),
        (_LOAD, 0, 0, _CALL_AT),
        (_JUMP_EQUAL, 0, 3, fchmod),
        (_LOAD, 0, 0, _MODE_AT),
        (_JUMP_EQUAL, 0, 1, _OPEN_MODE),
        (_RETURN, 0, 0, _RETURN_ZERO),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    libc, _long = ctypes.CDLL(None, use_errno=True), ctypes.c_ulong
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, _long(1), _long(0), _long(0), _long(0)) or libc.prctl(
        _PR_SET_SECCOMP, _long(_SECCOMP_MODE_FILTER), header, _long(0), _long(0)
    ):
        raise OSError(ctypes.get_errno(), "the kernel does not support seccomp filters")


def _guard(guarded: int, at_end: list[str]) -> None:
    """Wait for the end of the process `guarded`, this one's parent, and kill the rest of its group."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # a kernel without pidfd: poll
        handle = os.pidfd_open(guarded)
        if os.getppid() == guarded:
            select.select([handle], [], [])
    while os.getppid() == guarded:
        time.sleep(_POLL_INTERVAL_S)
    if at_end:
        with contextlib.suppress(OSError):
            os.spawnv(os.P_WAIT, at_end[0], at_end)  # noqa: S606 - as above
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
