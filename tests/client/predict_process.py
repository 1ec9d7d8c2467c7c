"""`predict` as a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from time_limits import LIMIT_S


@dataclass
class Ran:
    """What a `predict` process came to."""

    code: int
    out: str
    err: str


def run_predict(
    *words,
    stdin: str | None = "",
    cwd: Path | None = None,
    interrupt_when: Callable[[], None] | None = None,
    number: int = signal.SIGINT,
) -> Ran:
    """Run `predict` as a process; once `interrupt_when()` is true it gets Ctrl-C, or signal `number`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "unitrain", "predict", *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,
    )
    with process:
        try:
            if interrupt_when is not None:
                interrupt_when()
                os.kill(process.pid, number)
            out, err = process.communicate(stdin, timeout=LIMIT_S)
        except BaseException:
            process.kill()
            raise
    return Ran(process.returncode, out, err)
