"""Fingerprint of the validation data, equal for two runs that validate on the same samples.

Every sample of every validation loader is hashed in the first two validations. The second one shows whether the
loaders repeat the same samples. Hashing takes 0.6 ms per megabyte and 20 µs per batch on one core, in the
training thread.
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
"""Validations that are hashed; after them the loaders are known to repeat the same samples."""

_PLAIN = (str, bytes, bool, int, float, complex, type(None))
_CHANGES = "the validation data differ from one validation to the next (shuffled, or augmented at random)"


class UnhashableBatchError(TypeError):
    """A batch holds an object that can't be hashed."""


class SampleHash:
    """Hash of the samples of one loader in their order, whatever the batch size.

    A batch is a tensor or an array, or any nesting of mappings, tuples, lists and dataclasses of them; lists of
    plain values count as arrays. All arrays of a batch must have the same length, the number of samples. Values
    without an axis belong to all samples of their batch. A batch with arrays of several lengths is hashed as one
    sample.

    Attributes:
        samples: number of samples so far.
        whole_batches: True if a batch was hashed as one sample.

    >>> one, two = SampleHash(), SampleHash()
    >>> one.add(torch.arange(6))
    >>> two.add(torch.arange(4)), two.add(torch.arange(4, 6))
    (None, None)
    >>> one.hexdigest() == two.hexdigest()
    True
    """

    def __init__(self) -> None:
        self.samples = 0
        self.whole_batches = False
        self._fields: dict[str, _FieldHash] = {}

    def add(self, batch: Any) -> None:
        """Hash the samples of a batch.

        Raises:
            UnhashableBatchError: the batch holds an object that can't be hashed.
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
        """Return the SHA-256 of all samples so far."""
        whole = hashlib.sha256(f"{self.samples} samples".encode())
        for name in sorted(self._fields):
            whole.update(f"|{len(name)}:{name}".encode() + self._fields[name].digest())
        return whole.hexdigest()


class DataFingerprint(Callback):
    """Hash the validation data, and write their fingerprint into the run's record.

    The sanity check does not count as a validation, but reveals loaders that change their samples before the
    first validation has ended. In a distributed training each process hashes its share. The number of processes
    is part of the fingerprint, since the metric depends on it as well.

    Args:
        run: run folder; its record gets `data_fingerprint`, or `no_fingerprint` with the reason.
        console: prints a line if batches are hashed as one sample.
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
        """Fingerprint; None before the end of the first validation, or if the data have none."""
        return None if self._reason else self._fingerprint

    @property
    def reason(self) -> str | None:
        """Reason for a missing fingerprint; None if there is one."""
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
        """Hash a batch before the module, which may change it in place."""
        if not self._is_due or self._fault:
            return
        loader = self._loaders.setdefault(dataloader_idx, SampleHash())
        try:
            loader.add(batch)
        except Exception as error:  # noqa: BLE001 - no content of a batch may end the training
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
        return {
            "hashed": self._hashed,
            "fingerprint": self._fingerprint,
            "reason": self._reason,
            "sanity_check": self._expected,  # a resumed run has no sanity check of its own
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the fingerprint, and compare it with one more validation: the data may have changed."""
        self._resumed = True
        self._hashed = state_dict["hashed"]
        self._fingerprint, self._reason = state_dict["fingerprint"], state_dict["reason"]
        self._expected = state_dict.get("sanity_check", {})

    def _conclude(self, trainer: Trainer) -> None:
        """Compute the fingerprint at the end of a validation, together with the other processes."""
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
        elif self._fingerprint is None and any(one_sample for _, _, one_sample in shares):
            self._console.say(
                "validation data: the arrays of a batch have no common first axis, so each batch is hashed as one sample; "
                "with another batch size the same data have another fingerprint"
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
    """Running hash of one field of the samples; a change of header starts a new hash of the one so far."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._header: str | None = None
        self._end = 0

    def feed(self, header: str, data: Any, first: int, count: int) -> None:
        """Hash the samples from number `first` on.

        Args:
            header: dtype and shape of a sample; the value of a field without samples.
            first: number of the first sample.
            count: number of samples.
            data: bytes of the samples, one after the other.
        """
        if header != self._header or first != self._end:
            self._digest = hashlib.sha256(self._digest.digest() + f"{first}:{header}:".encode())
        self._digest.update(data)
        self._header, self._end = header, first + count

    def digest(self) -> bytes:
        return hashlib.sha256(self._digest.digest() + f"{self._end}".encode()).digest()


def _fields(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the tensors, arrays, lists of plain values and plain values of a batch, each with its path."""
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
    """Return a tensor as a numpy array (bytes if numpy lacks its type), text arrays as lists, other values unchanged."""
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
    """Return a field's header and bytes; `count` is the number of samples, None for a batch that is one sample."""
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
    """Gather the shares of all processes by rank, in every process."""
    if world_size == 1 or not torch.distributed.is_initialized():
        return [own]
    shares: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(shares, own)
    return shares
