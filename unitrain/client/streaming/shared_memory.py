"""Tensors in memory that client and server on one host share, so that messages carry only their places.

A region is a file below /dev/shm of this user's alone, unlinked as soon as the server has mapped it:
whatever ends this process, no file is left. It is registered by the administration socket of the user's own
`serve`, under a name that nobody else learns: a request that knew it could read the memory. The server's mapping is given back at the end; what a killed
client left there, the next one gives back. Each connection has a region of its own, since a request that was
given up may still be written to by a server that was only slow.
"""

import contextlib
import itertools
import math
import mmap
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from unitrain.client.connection import is_local
from unitrain.client.input_validation import Array
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, RequestError, ServingError, UsageError
from unitrain.serving.admin_client import Admin
from unitrain.serving.server_registry import find_server, start_of
from unitrain.signature import TensorSpec

_DIRECTORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory lies
_ALIGN = 64
_NAME = re.compile(r"unitrain-client-(\d+)-(\d+)-")
_numbers = itertools.count()


class SharedMemory:
    """A region with a slot a request, each with room for its inputs and outputs.

    Attributes:
        was_open: a server has mapped it.
        holds_outputs: the outputs come in it, too; those of open shapes come in the message.

    Raises:
        UsageError: the server is on another host, or the model's inputs have open shapes.
    """

    def __init__(self, model: ModelInfo, max_rows: int, slots: int) -> None:
        if not is_local(model.url):
            raise UsageError(f"--shm: the server must be on this host, got {model.url}")
        if not _fixed(model.inputs):
            raise UsageError(
                f"--shm: model {model.name} has inputs of open shapes or strings: {model.signature}"
            )
        rows = max_rows if model.signature.batched else 1
        self._rows = rows
        self._inputs, end = _places(model.inputs, rows, 0)
        self.holds_outputs = _fixed(model.outputs)
        outputs = model.outputs if self.holds_outputs else ()
        self._outputs, self._slot_bytes = _places(outputs, rows, end)
        self._bytes = slots * self._slot_bytes
        self._batched = model.signature.batched
        self._url = model.url
        self._all_slots = range(slots)
        self._free = list(self._all_slots)
        self._map: mmap.mmap | None = mmap.mmap(-1, self._bytes)  # until there is a server
        self._name = ""
        self.was_open = False

    def open(self, waiting: Iterable[tuple[int, Any]]) -> None:
        """A new region, known to the server; slot and message of unanswered requests move into it.

        Raises:
            ClientError: the server refuses it, or there is too little shared memory.
        """
        before = self._map
        pid = os.getpid()
        base = f"unitrain-client-{pid}-{start_of(pid)}-{next(_numbers)}"
        # Others may list the files while it lies there, and must not learn the region's name from it.
        self._name = f"{base}-{secrets.token_hex(16)}"
        path = _DIRECTORY / f"{base}-{secrets.token_hex(4)}"
        try:
            mapped = _mapped(path, self._bytes)
            with self._admin() as admin:
                self._sweep(admin)
                admin.register_region(self._name, f"/{path.name}", self._bytes)
        finally:
            path.unlink(missing_ok=True)
        self.was_open = True
        kept = set()
        for slot, message in waiting:
            kept.add(slot)
            if before is not None:
                at = slot * self._slot_bytes
                mapped[at : at + self._slot_bytes] = before[at : at + self._slot_bytes]
            for tensor in (*message.inputs, *message.outputs):
                tensor.parameters["shared_memory_region"].string_param = self._name
        self._free = [slot for slot in self._all_slots if slot not in kept]
        self._map = mapped

    def take(self, rows: int) -> int | None:
        """A free slot for so many rows; None where there is none that would hold them."""
        return self._free.pop() if self._free and rows <= self._rows else None

    def give(self, slot: int) -> None:
        """Take back a slot whose request was answered."""
        self._free.append(slot)

    def inputs(self, slot: int, rows: int) -> list[Array]:
        """The slot's memory as the inputs' arrays, to be filled."""
        return [self._view(slot, at, spec, rows) for spec, at in self._inputs.values()]

    def fill(self, message: Any, slot: int, rows: int) -> None:
        """Say in a request where its inputs lie and where its outputs are to go."""
        for tensor in message.inputs:
            self._point(tensor, slot, *self._inputs[tensor.name], rows)
        for name, (spec, at) in self._outputs.items():
            self._point(message.outputs.add(name=name), slot, spec, at, rows)

    def output(self, name: str, shape: tuple[int, ...], slot: int) -> Array:
        """A copy of an output that the server wrote."""
        spec, at = self._outputs[name]
        start = slot * self._slot_bytes + at
        count = math.prod(shape)
        if self._map is None:  # only after `close`
            raise RequestError(f"{self._url}: the shared memory is closed")
        return np.frombuffer(self._map, spec.numpy, count, start).reshape(shape).copy()

    def close(self, *, idle: bool) -> None:
        """Give the memory back; `idle`: the server no longer reads or writes it.

        A server that still does must keep it: it would crash. The next client gives it back.
        """
        if idle and self.was_open:
            # The region of this connection alone: one that was cut off may still be written to.
            with contextlib.suppress(ClientError), self._admin() as admin:
                admin.unregister_region(self._name)
        self._map = None  # views may be alive: the last one frees it

    def _view(self, slot: int, at: int, spec: TensorSpec, rows: int) -> Array:
        if self._map is None:
            raise RequestError(f"{self._url}: the shared memory is closed")
        shape = (rows, *spec.dims) if self._batched else spec.dims
        start = slot * self._slot_bytes + at
        return np.frombuffer(self._map, spec.numpy, math.prod(shape), start).reshape(shape)

    def _point(self, tensor: Any, slot: int, spec: TensorSpec, at: int, rows: int) -> None:
        tensor.parameters["shared_memory_region"].string_param = self._name
        tensor.parameters["shared_memory_offset"].int64_param = slot * self._slot_bytes + at
        tensor.parameters["shared_memory_byte_size"].int64_param = _bytes(spec, rows)

    def _sweep(self, admin: Admin) -> None:
        """Have the server let go of what clients that are no more left behind."""
        with contextlib.suppress(ServingError):
            for name in admin.regions():
                match = _NAME.match(name)
                if match and str(start_of(int(match[1]))) != match[2]:
                    admin.unregister_region(name)

    @contextlib.contextmanager
    def _admin(self) -> Iterator[Admin]:
        """The administration of the server; its errors inside the block become ours.

        Raises:
            ClientError: no server of this user's, or it refuses.
        """
        server = find_server(self._url)
        if server is None or not server.admin:
            raise ClientError(
                f"{self._url}: --shm needs a server that this user's `serve` started on this host; "
                "leave --shm out"
            )
        admin = Admin(self._url, socket_path=Path(server.admin))
        try:
            yield admin
        except ServingError as error:
            raise ClientError(f"{self._url}: --shm: {error}") from error
        finally:
            admin.close()


def _mapped(path: Path, size: int) -> mmap.mmap:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Reserved now: a full /dev/shm would kill the process that writes to it.
            os.posix_fallocate(handle, 0, size)
            return mmap.mmap(handle, size)
        finally:
            os.close(handle)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ClientError(
            f"--shm: {size:,} bytes of {_DIRECTORY} can't be had ({error.strerror}); use a smaller --window or "
            "--batch-rows, or leave --shm out"
        ) from error


def _fixed(specs: tuple[TensorSpec, ...]) -> bool:
    return all(-1 not in spec.dims and spec.dtype != "BYTES" for spec in specs)


def _bytes(spec: TensorSpec, rows: int) -> int:
    return rows * math.prod(spec.dims) * spec.numpy.itemsize


def _places(
    specs: tuple[TensorSpec, ...], rows: int, start: int
) -> tuple[dict[str, tuple[TensorSpec, int]], int]:
    """Each tensor's place in a slot, by name, and where the next would be."""
    places = {}
    for spec in specs:
        places[spec.name] = (spec, start)
        start += -(-_bytes(spec, rows) // _ALIGN) * _ALIGN
    return places, start
