"""Cases of a parametrized test of which `make test` runs only the first ones."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_after(quick: int, cases: Iterable[Any]) -> list[Any]:
    """Mark all cases but the first `quick` ones as slow. A tuple is a case of several arguments."""
    return [
        case
        if index < quick
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for index, case in enumerate(cases)
    ]


def slow_except(quick: Iterable[str], cases: Iterable[str]) -> list[Any]:
    """Mark all cases but the named ones as slow."""
    named = set(quick)
    return [case if case in named else pytest.param(case, marks=pytest.mark.slow) for case in cases]
