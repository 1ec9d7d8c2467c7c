"""Paired measurement: contenders take turns in one run, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def take_turns(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, calls: int = 1
) -> dict[str, list[float]]:
    """Seconds a call of each contender in each round; one round before is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, call in contenders.items():
            begun = time.perf_counter()
            for _ in range(calls):
                call()
            if turn:
                times[name].append((time.perf_counter() - begun) / calls)
    return times


def summary(values: list[float], scale: float = 1.0) -> dict[str, float]:
    """Median and the middle half, in the unit that `scale` makes of seconds."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": middle * scale, "low": low * scale, "high": high * scale}


def ratio(values: list[float], peer: list[float]) -> dict[str, float]:
    """Median and middle half of the rounds' ratios to the peer's same round."""
    return summary([a / b for a, b in zip(values, peer, strict=True)])


def line(name: str, figure: Mapping[str, float], unit: str = "") -> str:
    """A figure for people: median and the middle half."""
    return f"{name:<44} {figure['median']:>10.3g} {unit:<4} ({figure['low']:.3g} to {figure['high']:.3g})"
