r"""Terminal output of text from files, servers and exceptions.

Control characters are escaped, since they could move the cursor, recolour or retitle the terminal, or
reorder the text. ESC is printed as `\x1b`, a newline as `\n`. JSON needs no escaping.
"""

import contextlib
import io
import os
import re
import sys
import unicodedata
from typing import Any, TextIO

_JOINERS = "\u200c\u200d"
"""Zero-width characters that belong to the spelling of Persian words and of emoji."""


def printable(text: Any) -> str:
    r"""Return the text with control characters, bidirectional marks and lone surrogates escaped.

    >>> printable("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    text = str(text)
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in _JOINERS
    return character.encode("unicode_escape").decode() if hidden else character


def say(text: Any = "", *, to: TextIO | None = None) -> None:
    """Print one line, escaped, on standard output or on `to`."""
    print(printable(text), file=to or sys.stdout, flush=True)


def note(text: Any) -> None:
    """Print a remark on standard error."""
    say(f"note: {text}", to=sys.stderr)


def say_error(text: Any) -> None:
    """Print an error on standard error, in one line; do nothing if standard error is closed."""
    line = re.sub(r"\s*[\r\n]+\s*", " ", str(text).strip())
    with contextlib.suppress(OSError):
        say(f"error: {line}", to=sys.stderr)


def open_standard_streams() -> None:
    """Open the null device for standard streams that are closed (`>&-`).

    Otherwise the next file that is opened becomes standard output, and receives all printed text.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            stream = open(number, "r" if name == "stdin" else "w", closefd=False)  # noqa: SIM115 - stays open
            setattr(sys, name, stream)


def accept_any_text() -> None:
    """Escape characters that standard output's encoding lacks, rather than fail."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")
