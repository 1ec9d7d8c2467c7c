"""Fingerprint of the validation data: two runs that validate on the same samples have the same one.

Every sample of every validation loader is hashed as it passes, in the first two validations: the second shows
whether the loaders repeat themselves. Hashing takes 0.6 ms a megabyte and 20 µs a batch on one core, on the
thread that trains.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from unitrain.errors import RunError
from unitrain.repository.ranking import FINGERPRINT_KIND
from unitrain.runs import RunFolder
from unitrain.training.console import Console

CONFIRMED_AFTER = 2
"""Validations that are hashed; from then on the loaders are known to repeat themselves."""

_PLAIN = (str, bytes, bool, int, float, complex, type(None))
_CHANGES = "the validation data differ from one validation to the next (shuffled, or augmented at random)"


class UnhashableBatchError(TypeError):
    """A batch holds an object that has no bytes of its own."""


class SampleHash:
    """Hash of the samples of one loader in their order, whatever the batch size.

    A batch is a tensor or an array, or any nesting of mappings, tuples, lists and dataclasses of them; lists of
    plain values count as arrays. All arrays of a batch must have one first axis in common, of which each index is
    a sample; values without an axis hold for all samples of their batch. A batch without a common first axis is
    hashed as one sample.

    Attributes:
        samples: number of samples so far.
        whole_batches: whether the samples of a batch could not be told apart.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.whole_batches = False
        self._fields: dict[str, _FieldHash] = {}

    def add(self, batch: Any) -> None:
        """Hash the samples of a batch.

        Raises:
            UnhashableBatchError: the batch holds an object that has no bytes of its own.
        """
        fields = {name: _array_of(value) for name, value in _fields(batch, "")}
        lengths = {len(array) for array in fields.values() if isinstance(array, np.ndarray) and array.ndim}
        lengths = lengths or {len(items) for items in fields.values() if isinstance(items, list)}
        count = lengths.pop() if len(lengths) == 1 else None
        if count is None:
            self.whole_batches = True
        for name, value in fields.items():
            header, data = _header_and_data(value, count)
            self._fields.setdefault(name, _FieldHash()).feed(
                header, data, self.samples, 1 if count is None else count
            )
        self.samples += 1 if count is None else count

    def hexdigest(self) -> str:
        """SHA-256 of all samples so far."""
        whole = hashlib.sha256(f"{self.samples} samples".encode())
        for name in sorted(self._fields):
            whole.update(f"|{len(name)}:{name}".encode() + self._fields[name].digest())
        return whole.hexdigest()


class DataFingerprint(Callback):
    """Hashes the validation data as they pass, and keeps their fingerprint in the run's record.

    The sanity check counts as no validation, but shows loaders that don't repeat themselves before the first one
    has ended. The processes of a distributed training hash a share each; their number is part of the fingerprint,
    as it is of what the metric was measured on.

    Args:
        run: its record gets `data_fingerprint`, and `no_fingerprint` with the cause of a missing one.
        console: told of loaders whose samples can't be told apart.
    """

    def __init__(self, run: RunFolder, console: Console) -> None:
        self._run = run
        self._console = console
        self._hashed = 0
        self._resumed = False
        self._fingerprint: str | None = None
        self._reason: str | None = None
        self._loaders: dict[int, SampleHash] = {}
        self._expected: dict[int, tuple[int, str]] = {}  # samples and hash of the sanity check, by loader
        self._fault: str | None = None

    @property
    def value(self) -> str | None:
        """The fingerprint; None before the end of the first validation, or if the data have none."""
        return None if self._reason else self._fingerprint

    @property
    def reason(self) -> str | None:
        """The cause of a missing fingerprint, in words."""
        return self._reason or (None if self._fingerprint else "no validation was completed")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._loaders, self._fault = {}, None

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hash a batch before the module has it, which may change it in place."""
        if not self._is_due or self._fault:
            return
        loader = self._loaders.setdefault(dataloader_idx, SampleHash())
        try:
            loader.add(batch)
        except Exception as error:  # noqa: BLE001 - whatever a batch holds, the training goes on
            self._fault = f"the validation data can't be hashed: {error}"
            return
        if not trainer.sanity_checking and self._hashed == 0:
            samples, digest = self._expected.get(dataloader_idx, (0, ""))
            if samples == loader.samples and digest != loader.hexdigest():
                self._fault = _CHANGES

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            self._expected = {i: (loader.samples, loader.hexdigest()) for i, loader in self._loaders.items()}
        elif self._is_due:
            self._conclude(trainer)

    @property
    def _is_due(self) -> bool:
        return not self._reason and (self._resumed or self._hashed < CONFIRMED_AFTER)

    def state_dict(self) -> dict[str, Any]:
        return {"hashed": self._hashed, "fingerprint": self._fingerprint, "reason": self._reason}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue, with one validation more to compare: the data may have changed since."""
        self._resumed = True
        self._hashed = state_dict["hashed"]
        self._fingerprint, self._reason = state_dict["fingerprint"], state_dict["reason"]

    def _conclude(self, trainer: Trainer) -> None:
        """Settle the fingerprint at the end of a validation, together with the other processes."""
        own = (
            self._fault,
            [(i, loader.hexdigest()) for i, loader in sorted(self._loaders.items())],
            any(loader.whole_batches for loader in self._loaders.values()),
        )
        shares = _gathered(own, trainer.world_size)
        faults = [fault for fault, _, _ in shares if fault]
        text = repr([digests for _, digests, _ in shares])
        found = FINGERPRINT_KIND + hashlib.sha256(text.encode()).hexdigest()
        self._hashed, self._resumed = min(self._hashed + 1, CONFIRMED_AFTER), False
        if faults:
            self._reason = faults[0]
        elif self._fingerprint not in (None, found):
            self._reason = _CHANGES
        elif self._fingerprint is None and any(whole for _, _, whole in shares):
            self._console.say(
                "validation data: the samples of a batch can't be told apart (no common first axis), so whole batches are "
                "hashed; with another batch size the same data count as others"
            )
        self._fingerprint = self._fingerprint or found
        self._loaders, self._expected = {}, {}
        self._record(trainer)

    def _record(self, trainer: Trainer) -> None:
        found = {"data_fingerprint": self.value, "no_fingerprint": self._reason}
        if not trainer.is_global_zero or found.items() <= self._run.record().items():
            return
        try:
            self._run.update(**found)
        except RunError as error:  # a full disk must not end the training
            self._console.warn(str(error))


class _FieldHash:
    """Running hash of one field of the samples; what precedes a change of header is folded into it."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._header: str | None = None
        self._end = 0

    def feed(self, header: str, data: Any, first: int, count: int) -> None:
        """Hash the samples from number `first` on.

        Args:
            header: dtype and shape of a sample; of a field without samples, its value.
            data: bytes of the samples, one after the other.
        """
        if header != self._header or first != self._end:
            self._digest = hashlib.sha256(self._digest.digest() + f"{first}:{header}:".encode())
        self._digest.update(data)
        self._header, self._end = header, first + count

    def digest(self) -> bytes:
        return hashlib.sha256(self._digest.digest() + f"{self._end}".encode()).digest()


def _fields(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The tensors, arrays, lists of plain values and plain values in a batch, each with its place."""
    if isinstance(value, (Tensor, np.ndarray, np.generic, *_PLAIN)):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _fields(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        if value and all(isinstance(item, _PLAIN) for item in value):
            yield path, list(value)
        else:
            yield f"{path}.length", len(value)
            for index, item in enumerate(value):
                yield from _fields(item, f"{path}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _fields(getattr(value, field.name), f"{path}.{field.name}")
    else:
        raise UnhashableBatchError(f"a batch holds a {type(value).__module__}.{type(value).__qualname__}")


def _array_of(value: Any) -> Any:
    """A tensor as a numpy array, of bytes where numpy lacks its type; text arrays as lists; all else as it is."""
    if isinstance(value, Tensor):
        tensor = value.detach()
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        if tensor.is_quantized:
            tensor = tensor.dequantize()
        tensor = tensor.cpu().resolve_conj().resolve_neg().contiguous()
        try:
            return tensor.numpy()
        except TypeError:  # bfloat16 and other types that numpy lacks
            raw = tensor.unsqueeze(-1).view(torch.uint8)
            return raw.numpy().view([(str(tensor.dtype), np.uint8, raw.shape[-1])])[..., 0]
    if (
        isinstance(value, np.ndarray)
        and value.ndim
        and value.dtype.kind in "OUSV"
        and value.dtype.names is None
    ):
        return value.tolist()  # the width of a text array depends on its batch
    return value


def _header_and_data(value: Any, count: int | None) -> tuple[str, Any]:
    """A field's header and bytes; `count` is the number of samples, None for a batch that is one sample."""
    if isinstance(value, np.ndarray) and value.ndim:
        shape = value.shape[1:] if count is not None else value.shape
        flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8) if value.size else b""
        return f"{value.dtype}{shape}", flat
    if isinstance(value, list) and count in (None, len(value)):
        items = (f"{type(item).__name__}{item!r}" for item in value)
        data = "".join(f"{len(item)}:{item}" for item in items).encode()
        return "list" if count is not None else f"list of {len(value)}", data
    if isinstance(value, np.ndarray | np.generic):
        return f"{value.dtype} {value!r}", b""
    return f"{type(value).__name__} {value!r}", b""


def _gathered(own: Any, world_size: int) -> list[Any]:
    """Each process's share, by rank, in every process."""
    if world_size == 1 or not torch.distributed.is_initialized():
        return [own]
    shares: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(shares, own)
    return shares
