"""Integrity of a version's files: the manifest's own digest, the hashes that it holds, and its golden samples.

This file is copied beside the backend too, and runs inside Triton's Python stub, so it imports nothing of unitrain.
"""

import hashlib
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

MODEL_NAME, GOLDEN_NAME, MANIFEST_NAME = "model.onnx", "golden.npz", "manifest.json"
FORMAT = 2
"""Of the manifest; from 2 on it holds a digest of its own."""
DIGEST_KEY = "digest"
MOST_GOLDEN_BYTES = 256 << 20
"""Size of all golden arrays together, uncompressed."""
_MOST_GOLDEN_ARRAYS = 1024
_MOST_MANIFEST_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20

Golden = tuple[dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]
"""Golden inputs and outputs by name."""

Identity = tuple[int, int, int, int, int]
"""Device, inode, size, modification and change time of a file: equal ones mean that nothing wrote to it."""


class Contradiction(ValueError):  # noqa: N818 - it says what was found
    """A version's file is not what its manifest says, or can't be read."""


@dataclass(frozen=True)
class CheckedFiles:
    """A version's files whose hashes are those of its manifest.

    Attributes:
        folder: the version's folder.
        manifest: its manifest as plain JSON.
        contents: the checked bytes of each file that was read into memory, golden.npz among them.
        identities: of all files that were hashed, golden.npz left out.
    """

    folder: Path
    manifest: Mapping[str, Any]
    contents: Mapping[str, bytes]
    identities: Mapping[str, Identity] = field(default_factory=dict)

    def check_unchanged(self) -> None:
        """Return where no file has been written to since it was hashed.

        Raises:
            Contradiction: one has.
        """
        for name, identity in self.identities.items():
            path = self.folder / name
            try:
                now = _identity(path.stat())
            except OSError as error:
                raise Contradiction(f"{path} can't be read: {error.strerror}") from error
            # A backup that links the file changes its times, too: then the bytes tell.
            if now != identity and _hashed(path, 0)[1] != hashes_of(self.manifest, self.folder)[name]:
                raise Contradiction(f"{path} was written to while it was loaded; publish the version again")

    def golden(self) -> Golden | None:
        """The golden inputs and outputs; None where the version has none.

        Raises:
            Contradiction: the archive can't be read, or is too large.
        """
        data = self.contents.get(GOLDEN_NAME)
        if data is None:
            return None
        inputs, outputs = golden_arrays(data, str(self.folder / GOLDEN_NAME))
        if not inputs or not outputs:
            raise Contradiction(f"{self.folder / GOLDEN_NAME} has no arrays named inputs/… and outputs/…")
        return inputs, outputs


def read_checked(folder: Path, *, in_memory_bytes: int) -> CheckedFiles | None:
    """Read a version's files and check their hashes; None where it has no manifest.

    Args:
        folder: the version's folder.
        in_memory_bytes: files are kept in memory as long as they have no more bytes together; others are only hashed.

    Raises:
        Contradiction: the manifest can't be read or contradicts itself, or a file is not what it says.
    """
    manifest = read_manifest_json(folder)
    if manifest is None:
        return None
    contents: dict[str, bytes] = {}
    identities: dict[str, Identity] = {}
    left_bytes = in_memory_bytes
    hashes = hashes_of(manifest, folder)
    if GOLDEN_NAME not in hashes and (folder / GOLDEN_NAME).is_file():
        contents[GOLDEN_NAME] = _read(folder / GOLDEN_NAME, MOST_GOLDEN_BYTES)
    for name, wanted in hashes.items():
        path = folder / name
        if name == GOLDEN_NAME:
            contents[name] = _read(path, MOST_GOLDEN_BYTES)
            found = hashlib.sha256(contents[name]).hexdigest()
        else:
            identities[name], found, data = _hashed(path, left_bytes)
            if data is not None:
                contents[name] = data
                left_bytes -= len(data)
        if found != wanted:
            raise Contradiction(
                f"{path} was changed: its SHA-256 is {found[:12]}…, the manifest says {wanted[:12]}…; publish the "
                "version again or restore the file"
            )
    return CheckedFiles(folder, manifest, contents, identities)


def read_manifest_json(folder: Path) -> dict[str, Any] | None:
    """The manifest of a version's folder as plain JSON, its digest checked; None where there is none.

    Raises:
        Contradiction: it can't be read, or is not what was written.
    """
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        return None
    text = _read(path, _MOST_MANIFEST_BYTES)
    try:
        manifest = json.loads(text.decode())
        found = digest(text.decode())
    except (ValueError, RecursionError) as error:
        raise Contradiction(f"{path} can't be read as a manifest: {error}") from error
    if not isinstance(manifest, dict):
        raise Contradiction(f"{path} can't be read as a manifest: it is no object")
    number = manifest.get("format")
    if type(number) is not int or number < 1:
        raise Contradiction(f"{path} was changed: it has the format {number!r}, which no manifest has")
    if DIGEST_KEY not in manifest and number >= FORMAT:
        raise Contradiction(f"{path} was changed: its digest is missing")
    if DIGEST_KEY in manifest and manifest[DIGEST_KEY] != found:
        raise Contradiction(f"{path} was changed: its digest is not that of its content")
    return manifest


def digest(text: str) -> str:
    """The SHA-256 of a manifest's JSON text without its digest field, in hexadecimal.

    It is taken of canonical JSON (sorted keys, no spaces) in which numbers are the text that they were written
    as: white space and the order of keys do not count, everything else does.

    Raises:
        ValueError: it is no JSON.
    """

    def number(written: str) -> list[str]:
        return ["number", written]

    data = json.loads(text, parse_int=number, parse_float=number, parse_constant=number)
    if isinstance(data, dict):
        data.pop(DIGEST_KEY, None)
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def hashes_of(manifest: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by name, as a manifest has them.

    Raises:
        Contradiction: it has no hash of the model, or names a file elsewhere.
    """
    files = manifest.get("files") or {}
    hashes = {MODEL_NAME: manifest.get("sha256"), **(files if isinstance(files, dict) else {"files": None})}
    if manifest.get("golden_sha256") is not None:
        hashes[GOLDEN_NAME] = manifest["golden_sha256"]
    for name, value in hashes.items():
        if not isinstance(value, str) or Path(name).name != name or name in ("", ".."):
            raise Contradiction(f"{folder / MANIFEST_NAME} can't be read as a manifest: no hash of {name!r}")
    return hashes


def read_golden(folder: Path) -> Golden | None:
    """The golden inputs and outputs of a version's folder; None where it has none.

    Raises:
        Contradiction: the archive can't be read, or is too large.
    """
    path = folder / GOLDEN_NAME
    return golden_arrays(_read(path, MOST_GOLDEN_BYTES), str(path)) if path.is_file() else None


def golden_arrays(data: bytes, where: str) -> Golden:
    """The golden inputs and outputs of an archive, read no further than it declares and the limit allows.

    Raises:
        Contradiction: it is no archive of plain arrays, or has more than `MOST_GOLDEN_BYTES` uncompressed.
    """
    sides: dict[str, dict[str, np.ndarray[Any, Any]]] = {"inputs": {}, "outputs": {}}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_size(entries, where)
            for entry in entries:
                side, _, name = entry.filename.removesuffix(".npy").partition("/")
                if side in sides and name:
                    sides[side][name] = _array(archive, entry, where)
    except Contradiction:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds for a malformed file
        text = " ".join(str(error).split()) or type(error).__name__
        raise Contradiction(f"{where} can't be read: {text}") from error
    return sides["inputs"], sides["outputs"]


def _check_size(entries: list[zipfile.ZipInfo], where: str) -> None:
    if len(entries) > _MOST_GOLDEN_ARRAYS:
        raise Contradiction(f"{where} has {len(entries)} arrays, more than {_MOST_GOLDEN_ARRAYS}")
    total = sum(entry.file_size for entry in entries)
    if total > MOST_GOLDEN_BYTES:
        raise Contradiction(
            f"{where} has {total:,} bytes uncompressed, more than {MOST_GOLDEN_BYTES:,}; publish fewer "
            "golden samples (publish.golden.samples)"
        )


def feeds(inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays as onnxruntime takes them: strings as objects."""
    return {name: _texts(array) if array.dtype.kind in "OSU" else array for name, array in inputs.items()}


def _texts(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    texts = np.empty(array.size, dtype=object)
    texts[:] = [text.decode() if isinstance(text, bytes) else str(text) for text in array.reshape(-1)]
    return texts.reshape(array.shape)


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str) -> np.ndarray[Any, Any]:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Contradiction(f"{where} is compressed in another way than numpy's")  # LZMA takes any memory
    numpy_format: Any = np.lib.format
    with archive.open(entry) as file:
        version = numpy_format.read_magic(file)
        readers = {(1, 0): numpy_format.read_array_header_1_0, (2, 0): numpy_format.read_array_header_2_0}
        if version not in readers:
            raise Contradiction(f"{where} has an array of numpy's format {version}")
        shape, fortran_order, dtype = readers[version](file)
        size = math.prod(shape) * dtype.itemsize
        plain = dtype.kind in "biufSU" and not dtype.hasobject
        if not plain or min(shape, default=1) < 0 or size > entry.file_size:
            raise Contradiction(f"{where} has an array of {dtype}{list(shape)}, which it does not hold")
        data = bytearray(file.read(size))
        while file.read(_CHUNK_BYTES):  # to the end, where the checksum is compared
            pass
    array: np.ndarray[Any, Any] = np.frombuffer(data, dtype, math.prod(shape)) if size else np.zeros(0, dtype)
    return array.reshape(shape[::-1]).transpose() if fortran_order else array.reshape(shape)


def _open(path: Path) -> io.BufferedReader:
    """Open a plain file; a pipe must not hold up the reader."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise Contradiction(f"{path} is no plain file")


def _read(path: Path, limit: int) -> bytes:
    try:
        with _open(path) as file:
            data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise Contradiction(f"{path} can't be read: {error.strerror}") from error
    if len(data) > limit:
        raise Contradiction(f"{path} has more than {limit:,} bytes")
    return data


def _hashed(path: Path, keep_bytes: int) -> tuple[Identity, str, bytes | None]:
    """A file's identity, its hash, and, where it has no more than `keep_bytes`, the bytes that were hashed."""
    try:
        with _open(path) as file:
            identity = _identity(os.fstat(file.fileno()))
            if identity[2] > keep_bytes:
                return identity, hashlib.file_digest(file, "sha256").hexdigest(), None
            data = file.read(identity[2] + 1)
    except OSError as error:
        raise Contradiction(f"{path} can't be read: {error.strerror}") from error
    if len(data) != identity[2]:
        raise Contradiction(f"{path} was written to while it was read; publish the version again")
    return identity, hashlib.sha256(data).hexdigest(), data


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
