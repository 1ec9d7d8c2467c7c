"""What `serve` tells: lines for a person, or one JSON object a line for a program."""

import json
import os
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO


class Reporter:
    """Writes events, each flushed; safe in several threads.

    Attributes:
        also: called with each event's name, text and fields.
    """

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        self._as_json = as_json
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()
        self.also: Callable[[str, str, dict[str, Any]], None] | None = None

    def tell(self, event: str, text: str, **fields: Any) -> None:
        """Tell an event: `fields` to a program, `text` to a person."""
        now = datetime.now(UTC)
        if self._as_json:
            line = json.dumps({"event": event, **fields, "time": now.isoformat(timespec="milliseconds")})
        else:
            line = f"{now.astimezone():%H:%M:%S}  {text}"
        with self._lock:
            try:
                print(line, file=self._stream, flush=True)
            except BrokenPipeError:
                # The reader has gone (`| head`): what is served is served on, silently.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if self.also is not None:
                self.also(event, text, fields)
