"""Tables are aligned text where a program reads, and rich ones on a terminal that is wide enough."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from time_limits import LIMIT_S

from unitrain.commands._output import print_table, text_of_bytes, text_of_duration

PROGRAM = """
from unitrain.commands._output import print_table
print_table(("run", "best"), [("a [red] run with a name of fifty characters, or so", "0.5"), ("b", "10")], right=("best",))
"""


def _on_terminal(columns: int) -> str:
    """What the program prints on a terminal that is so many columns wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-c", PROGRAM]
    subprocess.run(command, stdout=theirs, check=True, timeout=LIMIT_S, env=environment | {"TERM": "xterm"})
    os.close(theirs)
    text = os.read(ours, 100_000).decode()
    os.close(ours)
    return text


def test_text_is_aligned_by_what_a_terminal_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """Wide characters take two columns; nothing trails."""
    print_table(("name", "n"), [("日本", "1"), ("abc", "10")], right=("n",))
    assert capsys.readouterr().out == "name   n\n日本   1\nabc   10\n"


def test_a_wide_terminal_gets_a_ruled_table() -> None:
    """With the names as they are: brackets are no markup."""
    shown = _on_terminal(100)
    assert "───" in shown
    assert "a [red] run with a name of fifty characters, or so" in shown


def test_a_narrow_terminal_gets_whole_names() -> None:
    """Cut in pieces they could not be copied."""
    shown = _on_terminal(40)
    assert "───" not in shown
    assert "a [red] run with a name of fifty characters, or so" in shown


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [
        (None, "-"),
        (1.25, "1.2 s"),
        (59.99, "60.0 s"),
        (61, "1 min 1 s"),
        (7260, "2 h 1 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations_have_their_two_largest_units(duration_s: float | None, text: str) -> None:
    """Seconds matter for short runs only."""
    assert text_of_duration(duration_s) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 kB"), (3 << 40, "3.0 TB")]
)
def test_sizes_have_a_fitting_unit(size: int, text: str) -> None:
    """In powers of 1024."""
    assert text_of_bytes(size) == text
