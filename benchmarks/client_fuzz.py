"""Malformed source files and arrays by the thousand: each is one sentence, none a traceback, none a hang.

    python benchmarks/client_fuzz.py [--cases 10000] [--seed 0] [--json]

A real Triton serves a model of FP32[3]; good `.npy`, `.npz`, `.csv` and `.jsonl` files, images and folders of them
are damaged at random (bytes flipped, cut, inserted, repeated, replaced; headers, shapes, dtypes and text that lie), and
given to `predict` in this process, as the command line would. A case is bad that raises anything but unitrain's own
errors, that tells them in more than one line, or that takes longer than `--limit` seconds. Exit code 1 where one is.
"""

import argparse
import contextlib
import io
import json
import random
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from client_served import DIMS, publish, served

from unitrain.commands.predict import main as predict
from unitrain.errors import UnitrainError

WIDTH = 8
KINDS = (".npy", ".npz", ".csv", ".jsonl", "folder", "array")
CELLS = (
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1e-999",
    "",
    " ",
    "word",
    "0x10",
    "1,2",
    "\0",
    "é",
    "\uff11",
    "1_000",
    '"',
    "null",
)
_NAMES = ("a.npy", "b.npz", "c.png", "d.jpg", "e.tif", "f.bmp", "g.gif", "h.webp")
VALUES: tuple[Any, ...] = (
    None,
    True,
    "a",
    {},
    [],
    [[]],
    [1],
    1e400,
    float("nan"),
    2**70,
    -(2**70),
    [None] * 8,
    [[1] * 8] * 2,
)
DTYPES = (
    "?",
    "i1",
    "u1",
    "i8",
    "u8",
    "f2",
    "f8",
    "c8",
    "S3",
    "U2",
    "M8[s]",
    "m8[s]",
    "O",
    "V4",
    ">f4",
    [("a", "f4")],
)


class Fuzzer:
    """Makes one damaged source after the other, the same ones for the same seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)  # noqa: S311 - no secret

    def source(self, number: int) -> tuple[str, Path]:
        """Its kind, and where it lies."""
        kind = self._random.choice(KINDS)
        if kind == "folder":
            path = self._folder / f"folder{number}"
            path.mkdir()
            for name in self._random.sample(_NAMES, self._random.randint(0, len(_NAMES))):
                (path / name).write_bytes(
                    self._damaged(self._bytes(Path(name).suffix, DIMS["autoencoder"][0]))
                )
            return kind, path
        if kind == "array":
            return kind, self._array(number)
        path = self._folder / f"case{number}{kind}"
        path.write_bytes(self._damaged(self._bytes(kind)))
        return kind, path

    def _bytes(self, suffix: str, shape: tuple[int, ...] = (5, WIDTH)) -> bytes:
        """A file of that kind, good or of lies."""
        rows = np.random.default_rng(self._random.getrandbits(32)).normal(size=shape).astype(np.float32)
        buffer = io.BytesIO()
        if suffix == ".npy":
            np.save(buffer, rows)
        elif suffix == ".npz":
            (np.savez if self._random.random() < 0.5 else np.savez_compressed)(buffer, x=rows)
        elif suffix == ".csv":
            lines = [",".join(f"x[{i}]" for i in range(WIDTH)), *(",".join(map(str, row)) for row in rows)]
            return self._lying_cells("\n".join(lines)).encode(errors="surrogateescape")
        elif suffix == ".jsonl":
            objects = [{"x": row.tolist()} for row in rows]
            if self._random.random() < 0.7:
                objects[self._random.randrange(5)][self._random.choice("xyz")] = self._random.choice(VALUES)
            return "\n".join(map(json.dumps, objects)).encode()
        else:
            from PIL import Image

            picture = Image.fromarray(rows.astype(np.uint8))
            picture.save(buffer, Image.registered_extensions()[suffix])
        return buffer.getvalue()

    def _lying_cells(self, text: str) -> str:
        lines = [line.split(",") for line in text.split("\n")]
        for _ in range(self._random.randint(0, 3)):
            line = self._random.choice(lines)
            line[self._random.randrange(len(line))] = self._random.choice(CELLS)
        return self._random.choice(("\n", "\n", "\r\n", "\r", "\n\n")).join(map(",".join, lines))

    def _array(self, number: int) -> Path:
        """A whole array of a shape or dtype that does not fit, or a header that promises too much."""
        path = self._folder / f"case{number}.npy"
        shape = tuple(self._random.choice((0, 1, 2, WIDTH, WIDTH)) for _ in range(self._random.randint(0, 4)))
        dtype = self._random.choice(DTYPES)
        with warnings.catch_warnings(action="ignore"):
            array = (
                np.zeros(shape, "f4") if self._random.random() < 0.3 else np.ones(shape, "u1").astype(dtype)
            )
        if array.dtype.kind == "f" and array.size:
            array.reshape(-1)[self._random.randrange(array.size)] = self._random.choice(
                (np.nan, np.inf, 0.1, 6e4)
            )
        if self._random.random() < 0.3:
            size = self._random.choice((2**31, 2**62, 10**30, -1))
            text = (
                f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size}, {WIDTH}), }}".ljust(117) + "\n"
            )
            head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
            if self._random.random() < 0.5:
                path = path.with_suffix(".npz")
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("x.npy", head + bytes(64))
            else:
                path.write_bytes(head + bytes(64))
        else:
            np.save(path, array, allow_pickle=True)
        return path

    def _damaged(self, data: bytes) -> bytes:
        out = bytearray(data)
        for _ in range(self._random.choice((0, 1, 1, 2, 5, 40))):
            at = self._random.randrange(len(out) + 1)
            piece = self._random.randbytes(self._random.choice((1, 2, 8, 100)))
            damage = self._random.randrange(6)
            if damage == 0 and at < len(out):
                out[at] ^= 1 << self._random.randrange(8)
            elif damage == 1:
                del out[at:]
            elif damage == 2:
                out[at:at] = piece
            elif damage == 3:
                out[at : at + len(piece)] = piece
            elif damage == 4:
                out += out[at:][:1000]
            else:
                del out[at : at + len(piece)]
        return bytes(out)


def attempt(words: list[str], limit_s: float) -> tuple[str, str]:
    """How `predict` ended (its exit code, `bad` or `hang`), and what it said."""
    told, ended = io.StringIO(), ["hang"]

    def run() -> None:
        try:
            ended[0] = str(predict(words))
        except UnitrainError as error:
            ended[0] = str(error.exit_code) if "\n" not in str(error) else "bad"
            told.write(str(error))
        except BaseException:  # noqa: BLE001 - that is what is looked for
            ended[0] = "bad"
            told.write(traceback.format_exc())

    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(limit_s)
    said = told.getvalue()
    return ("bad" if "Traceback" in said else ended[0]), said


def fuzz(
    url: str,
    folder: Path,
    *,
    cases: int,
    seed: int,
    limit_s: float = 20.0,
    tell: Callable[[str], None] = print,
) -> Counter[str]:
    """How many cases ended how, by kind of source; `tell` gets the bad ones."""
    fuzzer, counts = Fuzzer(folder, seed), Counter[str]()
    for number in range(cases):
        kind, path = fuzzer.source(number)
        words = ["autoencoder" if kind == "folder" else "mlp", "--url", url, "--input", str(path)]
        words += ["--retry-for", "5", "--timeout", "5"]
        if kind != "folder" and number % 5 == 0:
            words += ["--window-steps", str(WIDTH), "--hop-steps", "1"]
        start = time.monotonic()
        ended, said = attempt(words, limit_s)
        counts[f"{kind} {ended}"] += 1
        if ended in ("bad", "hang"):
            tell(f"case {number} ({kind}, {path}), {time.monotonic() - start:.1f} s: {ended}: {said}")
        else:
            _remove(path)
    return counts


def _remove(path: Path) -> None:
    for file in path.iterdir() if path.is_dir() else [path]:
        file.unlink()
    if path.is_dir():
        path.rmdir()


def main() -> int:
    """Run it and print the counts; 1 where a case is bad."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--limit", type=float, default=20.0, metavar="S", help="a case that takes longer hangs"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        for name in DIMS:
            publish(repository, name)
        with served(repository, *DIMS) as server:
            start = time.monotonic()
            counts = fuzz(
                server.url, Path(folder), cases=options.cases, seed=options.seed, limit_s=options.limit
            )
            seconds = time.monotonic() - start
    figures = {
        "cases": options.cases,
        "tracebacks": sum(n for name, n in counts.items() if name.endswith("bad")),
        "hangs": sum(n for name, n in counts.items() if name.endswith("hang")),
        "seconds": round(seconds, 1),
        "ended, by kind and exit code": dict(sorted(counts.items())),
    }
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<30} {value}")
    return 1 if figures["tracebacks"] or figures["hangs"] else 0


if __name__ == "__main__":
    sys.exit(main())
