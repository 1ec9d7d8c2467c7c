"""Events of `serve`: text lines for users, or one JSON object a line for programs.

event        fields
triton       way, program, reason, log
ready        grpc, metrics, pid, triton_pid, repository, log
loaded       model, versions
unloaded     model, reason
failed       model, version (None: the model itself), reason
unhealthy    model, version, reason
restarting   reason, after_s
unreadable   reason
stopped

Each has also `event` and `time`.
"""

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
    """Log of events, each flushed; safe in several threads.

    Args:
        as_json: whether to print JSON rather than text.
        stream: text stream to print to; None: standard output.

    Attributes:
        also: function that is called with each event's name, text and fields; None: none.
    """

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        self._as_json = as_json
        self._stream = stream or sys.stdout
        if isinstance(self._stream, io.TextIOWrapper):  # a path may have characters that its encoding lacks
            self._stream.reconfigure(errors="backslashreplace")
        self._lock = threading.Lock()
        self.also: Callable[[str, str, dict[str, Any]], None] | None = None

    def report(self, event: str, text: str, **fields: Any) -> None:
        """Print an event.

        Args:
            event: name of the event.
            text: line for users.
            fields: values for programs.
        """
        now = datetime.now(UTC)
        if self._as_json:
            line = json.dumps({"event": event, **fields, "time": now.isoformat(timespec="milliseconds")})
        else:
            line = f"{now.astimezone():%H:%M:%S}  {printable(text)}"
        with self._lock:
            try:
                print(line, file=self._stream, flush=True)
            except OSError:
                # The reader (`| head`) or the terminal has gone, or the disk is full. The server continues, and prints
                # again when it can.
                self._discard()
            if self.also is not None:
                self.also(event, text, fields)

    def _discard(self) -> None:
        """Discard buffered text, which the stream would otherwise write again with the next line and at exit."""
        handle = self._stream.fileno()
        kept, nowhere = os.dup(handle), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, handle)
        self._stream.flush()
        os.dup2(kept, handle)
        os.close(kept)
        os.close(nowhere)
