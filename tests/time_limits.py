"""Time limits of tests.

A test waits for an event, and its limit is only reached by a program that hangs. Every limit is at least ten times what
a quiet machine needs, because a machine that runs other programs needs that much.
"""

import time
from collections.abc import Callable
from typing import TypeVar

LIMIT_S = 600.0
"""Upper bound of a wait: for a process to exit, a server to answer, a file to appear."""

_Value = TypeVar("_Value")


def wait_until(
    condition: Callable[[], _Value], problem: str, *, limit_s: float = LIMIT_S, every_s: float = 0.05
) -> _Value:
    """Poll until the condition is true and return its value.

    Args:
        condition: function to poll.
        problem: message of the failure.
        limit_s: seconds until the wait fails.
        every_s: seconds between two polls.

    Raises:
        TimeoutError: the condition was still false at the limit.
    """
    deadline = time.monotonic() + limit_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{problem} within {limit_s:g} s")
        time.sleep(every_s)
    return value
