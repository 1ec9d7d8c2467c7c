"""What `serve` tells: lines for a person, or one JSON object a line for a program."""

import io
import json
import os
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from unitrain.terminal_output import printable


class Reporter:
    """Writes events, each flushed; safe in several threads.

    Attributes:
        also: called with each event's name, text and fields.
    """

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        self._as_json = as_json
        self._stream = stream or sys.stdout
        if isinstance(self._stream, io.TextIOWrapper):  # a path may have letters that its encoding lacks
            self._stream.reconfigure(errors="backslashreplace")
        self._lock = threading.Lock()
        self.also: Callable[[str, str, dict[str, Any]], None] | None = None

    def tell(self, event: str, text: str, **fields: Any) -> None:
        """Tell an event: `fields` to a program, `text` to a person."""
        now = datetime.now(UTC)
        if self._as_json:
            line = json.dumps({"event": event, **fields, "time": now.isoformat(timespec="milliseconds")})
        else:
            line = f"{now.astimezone():%H:%M:%S}  {printable(text)}"
        with self._lock:
            try:
                print(line, file=self._stream, flush=True)
            except OSError:
                # The reader (`| head`) or the terminal has gone, or the disk is full: what is served is served
                # on, and told again where it can be.
                self._drop()
            if self.also is not None:
                self.also(event, text, fields)

    def _drop(self) -> None:
        """Let go of what the stream could not write, which it would try again with the next line and at the end."""
        handle = self._stream.fileno()
        kept, nowhere = os.dup(handle), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, handle)
        self._stream.flush()
        os.dup2(kept, handle)
        os.close(kept)
        os.close(nowhere)
