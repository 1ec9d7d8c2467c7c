"""How far a stream is: a bar on a terminal, a line now and then elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unitrain.client.report import Report

_BAR_EVERY_S = 0.2
_LINE_EVERY_S = 10.0


@contextmanager
def progress(report: "Report", total: int | None, unit: str = "samples") -> Iterator[Callable[[], None]]:
    """A function that shows how far the report is, with its rate, and the time left where `total` is known."""
    shown: Callable[[], None]
    if not sys.stderr.isatty():
        yield _every(
            _LINE_EVERY_S, report, lambda: print(line(report, total, unit), file=sys.stderr), _LINE_EVERY_S
        )
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rest]}"))
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=5, transient=True) as bar:
        task = bar.add_task(unit, total=total, rest="")

        def update() -> None:
            bar.update(task, completed=report.samples, rest=_rest(report, total))

        shown = _every(_BAR_EVERY_S, report, update, 0.0)
        yield shown


def line(report: "Report", total: int | None, unit: str = "samples") -> str:
    """Count, rate, time left and errors as one line."""
    of = "" if total is None else f" of {total:,}"
    failed = f", {report.failed:,} failed" if report.failed else ""
    return f"{report.samples:,}{of} {unit}, {_rest(report, total)}{failed}"


def _rest(report: "Report", total: int | None) -> str:
    rate = report.samples / max(report.seconds, 1e-9)
    text = f"{rate:,.0f}/s"
    if total is None or not rate:
        return text
    left_s = round(max(0, total - report.samples) / rate)
    minutes, seconds = divmod(left_s, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{text}, {hours}:{minutes:02}:{seconds:02} left"


def _every(seconds: float, report: "Report", show: Callable[[], None], first_s: float) -> Callable[[], None]:
    """`show`, no more often than that: asking the clock costs far less than showing does."""
    next_s = first_s

    def shown() -> None:
        nonlocal next_s
        now = report.seconds
        if now >= next_s:
            next_s = now + seconds
            show()

    return shown
