"""Samples packed into requests' messages, and answers taken out of them; in shared memory where asked for."""

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from unitrain.client.connection import Connection
from unitrain.client.intake import join
from unitrain.client.model import MAX_PAYLOAD_BYTES, ModelInfo
from unitrain.client.request import Request, StreamOptions
from unitrain.client.wire import Encoder, decode_response, payload_bytes
from unitrain.errors import ClientError, DataError, RequestError

if TYPE_CHECKING:
    from unitrain.client.shared_memory import SharedMemory


class Packer:
    """Makes the messages of one stream's requests and reads their answers.

    Raises:
        UsageError: shared memory was asked for, and can't be.
    """

    def __init__(self, model: ModelInfo, options: StreamOptions, max_rows: int) -> None:
        self._model = model
        self._allow_nan = options.allow_nan
        self._encoder = Encoder(model)
        self._last_number = 0
        self._memory = _shared(model, options, max_rows) if options.shared_memory else None

    @property
    def shares_memory(self) -> bool:
        """Whether the server reads and writes memory of ours."""
        return self._memory is not None

    def pack(self, request: Request) -> list[Request]:
        """What is to be sent for it: itself, its halves where it was too large, or nothing where all is refused."""
        where = f"sample {request.items[0].index}"
        memory, place = self._memory, None
        if memory is not None:
            slot = request.slot = memory.take(sum(item.rows for item in request.items))
            if slot is not None:
                place = functools.partial(memory.inputs, slot)
        try:
            arrays = join(request.items, self._model, allow_nan=self._allow_nan, place=place)
            if arrays:
                self._last_number += 1
                request.number = self._last_number
                if memory is not None and request.slot is not None:
                    request.message = self._encoder.message(tuple(array.shape for array in arrays))
                    request.message.id = str(request.number)
                    memory.fill(request.message, request.slot, len(arrays[0]))
                elif len(request.items) > 1 and payload_bytes(arrays) > MAX_PAYLOAD_BYTES:
                    return self.split(request)
                else:
                    request.message = self._encoder.encode(arrays, request.number, where)
                return [request]
            request.error = ClientError("refused before sending")  # each item has its own
        except DataError as error:
            request.error = error
        self.free(request)
        return []

    def split(self, request: Request) -> list[Request]:
        """What is to be sent in its stead: its two halves."""
        self.free(request)
        middle = len(request.items) // 2
        request.halves = [Request(request.items[:middle]), Request(request.items[middle:])]
        for half in request.halves:
            half.first_sent_s = request.first_sent_s
        return [part for half in request.halves for part in self.pack(half)]

    def unpack(self, request: Request, answer: Any) -> None:
        """Take a ModelInferResponse as the request's answer."""
        shared = None
        if request.slot is not None and self._memory is not None and self._memory.holds_outputs:
            shared = functools.partial(self._memory.output, slot=request.slot)
        try:
            rows = sum(item.rows for item in request.items if item.error is None)
            request.outputs, request.version = decode_response(answer, self._model, rows, shared)
        except RequestError as error:
            request.error = RequestError(f"sample {request.items[0].index}: {error}", error.kind)
        request.message = None
        self.free(request)

    def free(self, request: Request) -> None:
        """Its shared memory may be used again: the server is done with it."""
        if request.slot is not None and self._memory is not None:
            self._memory.give(request.slot)
        request.slot = None

    def open(self, connection: Connection, unsent: Iterable[Request]) -> None:
        """Share the memory with a server; unanswered requests keep their places in it.

        Raises:
            ClientError: it refuses.
        """
        if self._memory is not None:
            waiting = [(r.slot, r.message) for r in unsent if r.slot is not None and not r.done()]
            self._memory.open(connection, waiting)

    @property
    def was_open(self) -> bool:
        """Whether a server has ever shared the memory."""
        return self._memory is None or self._memory.was_open

    def close(self, *, idle: bool) -> None:
        """Give the memory back; `idle`: the server has answered all that it was sent."""
        if self._memory is not None:
            self._memory.close(idle=idle)


def _shared(model: ModelInfo, options: StreamOptions, max_rows: int) -> "SharedMemory":
    from unitrain.client.shared_memory import SharedMemory

    # Requests are packed before there is room in the window for them: no more than these are unanswered.
    return SharedMemory(model, max_rows, slots=2 * options.window)
