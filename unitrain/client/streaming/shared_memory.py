"""Shared memory between the client and a server on the same host: messages refer to tensors there.

A region is a file in /dev/shm that only this user can read. It is unlinked as soon as the server has mapped
it, so that no file remains, however this process ends. The region is registered over the administration
socket of this user's `serve`. Its name stays secret, since a request that has the name can read the memory.

The server unmaps a region when its client closes it. Regions of killed clients are removed by the next
client. Each connection has a separate region, since a slow server may still write to the region of an
earlier one.
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

from unitrain.client.grpc_connection import is_local
from unitrain.client.input_validation import Array
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, RequestError, ServingError, UsageError
from unitrain.serving.admin_client import Admin
from unitrain.serving.server_registry import find_server, start_of
from unitrain.signature import TensorSpec

_DIRECTORY = Path("/dev/shm")  # noqa: S108 - the folder of POSIX shared memory
_ALIGN_BYTES = 64
_NAME = re.compile(r"unitrain-client-(\d+)-(\d+)-")
"""Region name: process id and start time of its client, and more."""
_region_numbers = itertools.count()


class SharedMemory:
    """Memory region with one slot for each request in flight, which has room for its inputs and outputs.

    Args:
        model: model that is queried.
        max_rows: maximum number of rows in a request.
        slots: number of slots.

    Attributes:
        was_connected: True once a server has mapped a region.
        holds_outputs: True if it has room for the outputs; outputs of open shapes are in the message.

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
        self._max_rows = max_rows if model.signature.batched else 1
        self._inputs, end = _layout(model.inputs, self._max_rows, 0)
        self.holds_outputs = _fixed(model.outputs)
        outputs = model.outputs if self.holds_outputs else ()
        self._outputs, self._slot_bytes = _layout(outputs, self._max_rows, end)
        self._bytes = slots * self._slot_bytes
        self._batched = model.signature.batched
        self._url = model.url
        self._all_slots = range(slots)
        self._free = list(self._all_slots)
        self._map: mmap.mmap | None = mmap.mmap(-1, self._bytes)  # until a server is connected
        self._name = ""
        self.was_connected = False

    def connect(self, waiting: Iterable[tuple[int, Any]]) -> None:
        """Make a new region and register it with the server; unanswered requests move into it.

        Args:
            waiting: slot and message of each unanswered request.

        Raises:
            ClientError: the server refuses it, or there is too little shared memory.
        """
        before = self._map
        pid = os.getpid()
        base = f"unitrain-client-{pid}-{start_of(pid)}-{next(_region_numbers)}"
        # Others may list the files in the meantime, and must not learn the region's name from them.
        self._name = f"{base}-{secrets.token_hex(16)}"
        path = _DIRECTORY / f"{base}-{secrets.token_hex(4)}"
        try:
            mapped = _map_file(path, self._bytes)
            with self._admin() as admin:
                self._unregister_orphans(admin)
                admin.register_region(self._name, f"/{path.name}", self._bytes)
        finally:
            path.unlink(missing_ok=True)
        self.was_connected = True
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

    def acquire(self, rows: int) -> int | None:
        """Return a free slot for a number of rows; None if there is none, or it has too little room."""
        return self._free.pop() if self._free and rows <= self._max_rows else None

    def release(self, slot: int) -> None:
        """Free a slot whose request was answered."""
        self._free.append(slot)

    def inputs(self, slot: int, rows: int) -> list[Array]:
        """Return arrays in the slot's memory, one an input, which the caller fills."""
        return [self._view(slot, at, spec, rows) for spec, at in self._inputs.values()]

    def point_to_slot(self, message: Any, slot: int, rows: int) -> None:
        """Refer a request's message to its inputs in the slot, and to the memory for its outputs."""
        for tensor in message.inputs:
            self._point(tensor, slot, *self._inputs[tensor.name], rows)
        for name, (spec, at) in self._outputs.items():
            self._point(message.outputs.add(name=name), slot, spec, at, rows)

    def output(self, name: str, shape: tuple[int, ...], slot: int) -> Array:
        """Return a copy of an output that the server wrote."""
        spec, at = self._outputs[name]
        start = slot * self._slot_bytes + at
        count = math.prod(shape)
        if self._map is None:  # after `close`
            raise RequestError(f"{self._url}: the shared memory is closed")
        return np.frombuffer(self._map, spec.numpy, count, start).reshape(shape).copy()

    def close(self, *, idle: bool) -> None:
        """Free the memory.

        Args:
            idle: True if the server no longer reads or writes it. Otherwise it keeps its mapping, without which
                it would crash, and the next client unregisters the region.
        """
        if idle and self.was_connected:
            # Only the region of this connection: that of a broken connection may still be written to.
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

    def _unregister_orphans(self, admin: Admin) -> None:
        """Unregister the regions of clients that no longer run."""
        with contextlib.suppress(ServingError):
            for name in admin.regions():
                match = _NAME.match(name)
                if match and str(start_of(int(match[1]))) != match[2]:
                    admin.unregister_region(name)

    @contextlib.contextmanager
    def _admin(self) -> Iterator[Admin]:
        """Connect to the server's administration socket; its errors become `ClientError`.

        Raises:
            ClientError: no server of this user's, or it refuses.
        """
        server = find_server(self._url)
        if server is None or not server.admin:
            raise ClientError(
                f"{self._url}: --shm needs a server that this user's `serve` started on this host; omit --shm"
            )
        admin = Admin(self._url, socket_path=Path(server.admin))
        try:
            yield admin
        except ServingError as error:
            raise ClientError(f"{self._url}: --shm: {error}") from error
        finally:
            admin.close()


def _map_file(path: Path, size: int) -> mmap.mmap:
    """Create a file of this user's alone, and map it."""
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
            "--batch-rows, or omit --shm"
        ) from error


def _fixed(specs: tuple[TensorSpec, ...]) -> bool:
    """Return True if all tensors have a fixed size."""
    return all(-1 not in spec.dims and spec.dtype != "BYTES" for spec in specs)


def _bytes(spec: TensorSpec, rows: int) -> int:
    return rows * math.prod(spec.dims) * spec.numpy.itemsize


def _layout(
    specs: tuple[TensorSpec, ...], rows: int, start: int
) -> tuple[dict[str, tuple[TensorSpec, int]], int]:
    """Return each tensor and its offset in a slot, by name, and the offset after the last."""
    layout = {}
    for spec in specs:
        layout[spec.name] = (spec, start)
        start += -(-_bytes(spec, rows) // _ALIGN_BYTES) * _ALIGN_BYTES
    return layout, start
