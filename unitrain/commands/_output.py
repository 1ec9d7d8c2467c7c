"""Tables and figures as the commands print them: by rich on a terminal, aligned text elsewhere."""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from unitrain.atomic_files import finite
from unitrain.terminal_output import printable

NOTHING = "-"
"""Text of an empty cell."""

_KIB = 1024.0
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Iterable[str] = ()) -> None:
    """Print rows under their columns' names; those in `right` are aligned to the right."""
    columns, rows = list(map(printable, columns)), [list(map(printable, row)) for row in rows]
    if not sys.stdout.isatty() or not _print_rich(columns, rows, frozenset(right)):
        print("\n".join(_aligned(columns, rows, frozenset(right))))


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one a line, the values under each other."""
    shown = [(printable(name), printable(text_of(value))) for name, value in fields]
    width = max((_width(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name}{' ' * (width - _width(name))}  {value}".rstrip())


def print_json(data: Any) -> None:
    """Print data as JSON that every reader takes."""
    text = json.dumps(finite(data), indent=2, ensure_ascii=False, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(finite(data), indent=2, default=str)
    print(text)


def text_of(value: Any) -> str:
    """A value as a cell shows it: four significant digits, lists by commas."""
    if value is None or value in ("", []):
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value))
    return str(value)


def text_of_bytes(size_bytes: float) -> str:
    """A size in the unit that suits it: `1.4 MB` is 1.4 · 1024² bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < _KIB:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= _KIB
    return f"{size_bytes:.1f} TB"


def text_of_duration(duration_s: float | None) -> str:
    """A duration in its two largest units: `3 h 20 min`."""
    if duration_s is None:
        return NOTHING
    if duration_s < _MINUTE_S:
        return f"{duration_s:.1f} s"
    seconds = round(duration_s)
    if seconds < _HOUR_S:
        return f"{seconds // _MINUTE_S} min {seconds % _MINUTE_S} s"
    if seconds < _DAY_S:
        return f"{seconds // _HOUR_S} h {seconds % _HOUR_S // _MINUTE_S} min"
    return f"{seconds // _DAY_S} d {seconds % _DAY_S // _HOUR_S} h"


def text_of_time(moment: datetime | None) -> str:
    """A moment in local time, to the second."""
    try:
        return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else NOTHING
    except (OverflowError, ValueError):  # the year 1 in a time zone west of Greenwich
        return NOTHING


def flat_fields(data: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """The values of nested mappings by dotted names, in their order; of lists of mappings too."""
    if isinstance(data, dict) and data:
        return [
            field for key, value in data.items() for field in flat_fields(value, _joined(prefix, str(key)))
        ]
    if isinstance(data, list) and data and all(isinstance(entry, dict) for entry in data):
        return [field for i, entry in enumerate(data) for field in flat_fields(entry, f"{prefix}[{i}]")]
    return [(prefix, None if data == {} else data)]


def _joined(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _width(text: str) -> int:
    """Columns that a terminal gives a text: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]) -> list[str]:
    lines = [list(columns), *map(list, rows)]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(columns))]

    def padded(text: str, index: int) -> str:
        blanks = " " * (widths[index] - _width(text))
        return blanks + text if columns[index] in right else text + blanks

    return ["  ".join(padded(text, i) for i, text in enumerate(line)).rstrip() for line in lines]


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[str]) -> bool:
    """Print the table by rich, if the terminal is wide enough: names cut in pieces can't be copied."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))  # a run's name in brackets is no markup
    console = Console()
    unbounded = console.options.update(max_width=10_000)
    fits = Measurement.get(console, unbounded, table).maximum <= console.width
    if fits:
        console.print(table)
    return fits


if TYPE_CHECKING:
    from unitrain.client.stream_stats import StreamStatistics

_BAR_EVERY_S = 0.2
_LINE_EVERY_S = 10.0


@contextmanager
def progress(
    report: "StreamStatistics", total: int | None, unit: str = "samples"
) -> Iterator[Callable[[], None]]:
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


def line(report: "StreamStatistics", total: int | None, unit: str = "samples") -> str:
    """Count, rate, time left and errors as one line."""
    of = "" if total is None else f" of {total:,}"
    failed = f", {report.failed:,} failed" if report.failed else ""
    return f"{report.samples:,}{of} {unit}, {_rest(report, total)}{failed}"


def _rest(report: "StreamStatistics", total: int | None) -> str:
    rate = report.samples / max(report.seconds, 1e-9)
    text = f"{rate:,.0f}/s"
    if total is None or not rate:
        return text
    left_s = round(max(0, total - report.samples) / rate)
    minutes, seconds = divmod(left_s, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{text}, {hours}:{minutes:02}:{seconds:02} left"


def _every(
    seconds: float, report: "StreamStatistics", show: Callable[[], None], first_s: float
) -> Callable[[], None]:
    """Return a `show` that is called no more often than that; reading the clock is cheap."""
    next_s = first_s

    def shown() -> None:
        nonlocal next_s
        now = report.seconds
        if now >= next_s:
            next_s = now + seconds
            show()

    return shown
