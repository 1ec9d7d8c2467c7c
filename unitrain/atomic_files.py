"""Atomic writes: a file is complete or missing, even after a power failure.

Each write goes to a temporary name beside its target, is flushed to the disk, and is then renamed. The
folder is flushed as well, since it records the rename.
"""

import contextlib
import errno
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def fsync_dir(directory: Path) -> None:
    """Flush a folder's entries to the disk."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(directory: Path) -> None:
    """Flush a folder and every file and folder below it to the disk."""
    for root, _, files in os.walk(directory):
        for name in files:
            handle = os.open(os.path.join(root, name), os.O_RDONLY)  # noqa: PTH118 - os.walk gives strings
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_dir(Path(root))


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Yield a binary file that replaces `path` after the block; an exception of the block discards it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write bytes atomically."""
    with replacing(path, mode=mode) as file:
        file.write(data)


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a text as UTF-8 atomically."""
    write_bytes(path, text.encode(), mode=mode)


def write_json(path: Path, data: Any, *, mode: int = 0o644) -> None:
    """Write data as indented JSON atomically; NaN and infinities become null, which every reader accepts."""
    write_text(path, json_text(data), mode=mode)


def json_text(data: Any) -> str:
    """Return data as indented JSON, with null for NaN and infinities."""
    return json.dumps(finite(data), indent=2, ensure_ascii=False) + "\n"


def full_disk(error: BaseException | None) -> str | None:
    """Return the system's message if a full disk or a quota caused an error; None for other causes."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
        error = error.__cause__ or error.__context__
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        OSError: the file can't be read, or is a folder, a pipe or a device.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):  # a pipe or a device may never end
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return hashlib.file_digest(file, "sha256").hexdigest()


def finite(value: Any) -> Any:
    """Replace NaN and infinities by None and keys by text, so that every JSON reader accepts the value."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None  # noqa: PLR0124 - NaN
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value
