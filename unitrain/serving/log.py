"""What Triton's own log says, where its answers say too little."""

import os
import re
from pathlib import Path

_END_BYTES = 256 << 10
_REFUSED_FLAG = re.compile(r"unrecognized option|ambiguous|requires an argument")
_ERROR_LINE = re.compile(r"E\d{4} |error: |Failed |docker: |FATAL: ")
_SAYS_NOTHING = "failed to poll from model repository"
_POLL_FAILED = re.compile(r"Poll failed for model directory '([^']*)': (.*?)\"?$", re.MULTILINE)


def start_failure(log_path: Path) -> str | None:
    """Triton's words on why it did not start; None where it said nothing."""
    lines = _end_of(log_path).splitlines()
    refused = [line for line in lines if _REFUSED_FLAG.search(line)]  # before two screens of usage
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    words = (refused[:1] or errors[-1:] or [""])[0]
    return f"Triton did not start: {' '.join(words.split())}" if words else None


def reason_of(log_path: Path, model: str, words: str) -> str:
    """Why a model was not loaded: the words of Triton's answer, or of its log where the answer has none."""
    if _SAYS_NOTHING not in words:
        return words
    said = [reason for name, reason in _POLL_FAILED.findall(_end_of(log_path)) if name == model]
    return said[-1] if said else words


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _END_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
