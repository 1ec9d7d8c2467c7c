"""State of a module outside its weights, as far as its forward reads it.

A graph contains such state as constants: a temperature that a training lowers, an entry of a dict, the
current epoch, an added layer. `ModuleState.of` runs a copy of the module once and records the attributes that
forward reads. `ModuleState.holds` compares only these with the live module, which takes microseconds. While
they are equal, forward takes the same path, and weights can be swapped in the existing graph.
"""

import functools
import hashlib
import pickle
import types
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from unitrain.errors import ExportError
from unitrain.import_aliases import former_name
from unitrain.onnx_export.module_copy import ATOMIC, FrozenTrainer, copy_module, parts_of

_OWN = frozenset(vars(nn.Module())) | {"_trainer", "_fabric", "_device", "_dtype"}
"""Attributes of every module: tensors, submodules and hooks, which the structure describes."""
_LIBRARIES = ("torch", "pytorch_lightning", "lightning", "lightning_fabric", "builtins", "torchmetrics")
_MAX_VALUES = 100_000
"""Maximum number of values compared by content; the rest of a larger structure is compared by identity."""
Key = Hashable
Reads = Mapping[str, frozenset[str]]
"""Attributes that forward reads, by submodule's name."""


@dataclass(frozen=True)
class ModuleState:
    """Copy of a module, and the attributes that forward reads beside weights and inputs.

    Attributes:
        module: evaluation copy on the CPU, with the weights that were loaded last.
        reads: attributes that forward reads, by submodule's name.
        trainer_reads: attributes of the trainer that forward reads.
        key: comparable value of these attributes in the live module.
    """

    module: LightningModule
    reads: Reads
    trainer_reads: frozenset[str]
    key: Key

    @classmethod
    def of(cls, module: LightningModule, run: Callable[[LightningModule], object]) -> "ModuleState":
        """Copy a live module, and record what its forward reads.

        Args:
            module: live module.
            run: function that calls the served function of a module, on real rows.

        Raises:
            ExportError: forward needs an attribute that can't be copied.
        """
        # Attributes that are skipped at first are copied only if forward reads them.
        for heavy in (False, True):
            clone, skipped = copy_module(module, heavy=heavy)
            try:
                with _recorded(clone) as found:
                    run(clone)
                break
            except AttributeError as error:
                needed = [where for where in skipped if error.name and where.rpartition(".")[2] == error.name]
                if not needed:
                    raise
                if heavy:
                    raise ExportError(
                        f"{type(module).__name__}: forward reads self.{needed[0]}, which can't be copied into a served "
                        f"model ({skipped[needed[0]]}); read it in the data module or in the steps instead, or switch "
                        "publishing off with --publish null"
                    ) from error
        reads, trainer_reads = found()
        return cls(clone, reads, trainer_reads, _key_of(module, reads, trainer_reads))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the attributes that forward reads, equal in every process; functions count by name and code."""
        key = _key_of(self.module, self.reads, self.trainer_reads, stable=True)
        return hashlib.sha256(repr(key).encode()).hexdigest()

    def holds(self, module: LightningModule) -> bool:
        """Return True if the forward of a live module would read the same values."""
        return self.key == _key_of(module, self.reads, self.trainer_reads)


@contextmanager
def _recorded(clone: nn.Module) -> Iterator[Callable[[], tuple[Reads, frozenset[str]]]]:
    """Record which attributes of a module are read before they are written."""
    read: dict[int, set[str]] = {}
    written: dict[int, set[str]] = {}
    parts: list[Any] = [part for part in clone.modules() if not isinstance(part, torch.jit.ScriptModule)]
    trainer = vars(clone).get("_trainer")
    classes: dict[type, type] = {}
    watched: list[tuple[Any, type]] = []
    for part in (*parts, *([trainer] if trainer is not None else [])):
        kind = type(part)
        try:
            if kind not in classes:
                classes[kind] = _watching(kind, read, written)
            object.__setattr__(part, "__class__", classes[kind])
        except TypeError:  # a special layout: all of its attributes count as read
            read[id(part)] = set(vars(part))
            continue
        watched.append((part, kind))

    def found() -> tuple[Reads, frozenset[str]]:
        reads = {
            name: _state_names(part, read.get(id(part), set())) for name, part in parts_of(clone).items()
        }
        of_trainer = frozenset(n for n in read.get(id(trainer), ()) if not n.startswith("__"))
        return {name: names for name, names in reads.items() if names}, of_trainer

    try:
        yield found
    finally:
        for part, kind in watched:
            object.__setattr__(part, "__class__", kind)


def _watching(kind: Any, read: dict[int, set[str]], written: dict[int, set[str]]) -> type:
    """Return a subclass that records each attribute that is read before it is written."""

    def getting(self: Any, name: str) -> Any:
        if name not in written.get(id(self), ()):
            read.setdefault(id(self), set()).add(name)
        return kind.__getattribute__(self, name)

    def setting(self: Any, name: str, value: Any) -> None:
        written.setdefault(id(self), set()).add(name)
        kind.__setattr__(self, name, value)

    content = {"__getattribute__": getting, "__setattr__": setting, "__module__": kind.__module__}
    watching: type = type(kind)(kind.__name__, (kind,), content | {"__qualname__": kind.__qualname__})
    return watching


def _state_names(part: nn.Module, names: set[str]) -> frozenset[str]:
    """Select the names of plain state: no tensors, submodules or methods, and none of a library."""
    own = vars(part)
    registered = {*own["_parameters"], *own["_buffers"], *own["_modules"]}
    kept = set()
    for name in names - _OWN - registered:
        if name.startswith("__"):
            continue
        if name in own:
            kept.add(name)
            continue
        owner = next((c for c in type(part).__mro__ if name in vars(c)), None)
        if owner is None:  # missing now; it may be set later
            kept.add(name)
        elif owner.__module__.partition(".")[0] not in _LIBRARIES:
            value = vars(owner)[name]
            if not callable(value) and not hasattr(value, "__get__"):
                kept.add(name)
    return frozenset(kept)


_MISSING = ("missing",)
_PLAIN = frozenset({type(None), bool, int, str})


def _key_of(module: nn.Module, reads: Reads, trainer_reads: frozenset[str], *, stable: bool = False) -> Key:
    """Return the attributes in `reads` and the structure of a module as one comparable value.

    Args:
        module: the module.
        reads: attributes by submodule's name.
        trainer_reads: attributes of the trainer.
        stable: True omits values that differ between processes.
    """
    parts = parts_of(module)
    keys = _Keys(parts, stable=stable)
    state = []
    for path, names in sorted(reads.items()) if stable else reads.items():
        part = parts.get(path)
        if part is None:
            return ("another structure",)
        own = vars(part)
        for name in sorted(names) if stable else names:  # else in the order of the same set
            value = own[name] if name in own else getattr(type(part), name, _MISSING)
            kind = type(value)
            state.append((kind, value) if kind in _PLAIN else keys.of(value))
    if trainer_reads:
        trainer = vars(module).get("_trainer")
        frozen = vars(trainer if isinstance(trainer, FrozenTrainer) else FrozenTrainer(trainer))
        state += [keys.of(frozen.get(name)) for name in sorted(trainer_reads)]
    if stable:
        # Metrics, which a training may create late, are not used for a request.
        kept = {
            path: part for path, part in parts.items() if not type(part).__module__.startswith("torchmetrics")
        }
        classes = tuple(
            sorted(
                (path, former_name(f"{type(part).__module__}.{type(part).__qualname__}"))
                for path, part in kept.items()
            )
        )
        return (classes, tuple(state))
    return (tuple(_structure(part, keys.index) for part in parts.values()), tuple(state))


def _structure(part: nn.Module, index: Mapping[int, int]) -> Key:
    """Return class, hooks, and tensors and submodules by name."""
    own = vars(part)
    key: list[Any] = [type(part)]
    for kind in ("_parameters", "_buffers"):
        for name, tensor in own[kind].items():
            key += (name,) if tensor is None else (name, tensor.dtype, _shape(tensor))
    for name, inner in own["_modules"].items():
        key += (name, index.get(id(inner)))
    for kind in ("_forward_pre_hooks", "_forward_hooks"):
        if own[kind]:
            key += (id(hook) for hook in own[kind].values())
    return tuple(key)


def _shape(tensor: Tensor) -> Key:
    try:
        return tensor.shape
    except (RuntimeError, ValueError):  # a lazy layer's
        return None


class _Keys:
    """Converter of values to comparable keys, by content if the content can change."""

    def __init__(self, parts: Mapping[str, nn.Module], *, stable: bool) -> None:
        self._stable = stable
        self.index: dict[int, Any] = {
            id(part): path if stable else i for i, (path, part) in enumerate(parts.items())
        }
        self._parts = parts
        self._weights: dict[int, str] | None = None
        self._seen: dict[int, int] = {}
        self._alive: list[Any] = []

    def of(self, value: Any) -> Key:  # noqa: PLR0911 - a case each type
        kind = type(value)
        if kind in ATOMIC:
            return (kind, value if value == value else "nan")  # noqa: PLR0124
        if len(self._alive) > _MAX_VALUES:
            return ("identity", "" if self._stable else id(value))
        if isinstance(value, Tensor):
            return self._tensor(value)
        if id(value) in self.index:
            return ("part", self.index[id(value)])
        if id(value) in self._seen:
            return ("seen", self._seen[id(value)])
        self._seen[id(value)] = len(self._alive)
        self._alive.append(value)
        if isinstance(value, np.ndarray):
            content = pickle.dumps(value) if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
            return ("array", value.dtype.str, value.shape, _digest(content))
        if isinstance(value, dict):
            return (kind, tuple((self.of(k), self.of(v)) for k, v in value.items()))
        if isinstance(value, list | tuple):
            return (kind, tuple(self.of(item) for item in value))
        if isinstance(value, set | frozenset):
            items = frozenset(self.of(item) for item in value)
            return (kind, tuple(sorted(map(repr, items))) if self._stable else items)
        return self._object(value, kind)

    def _object(self, value: Any, kind: type) -> Key:
        if isinstance(value, types.FunctionType):
            cells = tuple(self.of(_content(cell)) for cell in value.__closure__ or ())
            return ("function", _code_of(value) if self._stable else id(value), cells)
        if isinstance(value, types.MethodType):
            function = value.__func__
            return ("method", _code_of(function) if self._stable else id(function), self.of(value.__self__))
        if isinstance(value, functools.partial):
            return (
                kind,
                self.of(value.func),
                self.of(value.args),
                self.of(value.keywords),
                self.of(vars(value)),
            )
        if hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
            return (kind, tuple((name, self.of(item)) for name, item in vars(value).items()))
        try:
            return (kind, _digest(pickle.dumps(value)))
        except Exception:  # noqa: BLE001 - then compare by identity
            return (kind, "" if self._stable else id(value))

    def _tensor(self, tensor: Tensor) -> Key:
        if self._weights is None:
            self._weights = {
                id(t): f"{path}.{name}"
                for path, part in self._parts.items()
                for kind in ("_parameters", "_buffers")
                for name, t in vars(part)[kind].items()
            }
        name = self._weights.get(id(tensor))
        if name is not None:
            return ("weight", name)
        whole = tensor.detach()
        if whole.layout is not torch.strided:
            whole = whole.to_dense()
        content = whole.cpu().contiguous().reshape(-1).view(torch.uint8).numpy() if whole.numel() else b""
        return ("tensor", tensor.dtype, tensor.shape, _digest(content))


def _digest(content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _code_of(function: Any) -> Key:
    code = getattr(function, "__code__", None)
    return (getattr(function, "__qualname__", ""), None if code is None else _digest(code.co_code))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None
