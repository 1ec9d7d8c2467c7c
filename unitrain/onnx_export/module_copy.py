"""Copy of a live module for serving: weights, plain attributes and the trainer's counters.

`copy.deepcopy` drops the trainer, so `self.current_epoch` is 0 in the copy. It also fails on modules with a
lock, an open file, a loader's iterator or a tensor with a gradient's history, which ordinary modules have.
Here each attribute is copied by itself, and attributes that can't be copied are skipped.
"""

import copy
import functools
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

ATOMIC = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, type}
)
"""Types whose values never change."""
_TRAINER_VALUES = (
    "current_epoch", "global_step", "max_epochs", "min_epochs", "max_steps", "num_training_batches",
    "accumulate_grad_batches", "log_every_n_steps", "world_size", "global_rank", "local_rank", "node_rank",
    "num_nodes", "num_devices", "is_global_zero", "precision",
)  # fmt: skip
_LOCKS: dict[type, Callable[[], Any]] = {
    type(threading.Lock()): threading.Lock,
    type(threading.RLock()): threading.RLock,
}
_HEAVY = (DataLoader, Dataset, LightningDataModule, Optimizer)
"""Objects that a forward seldom needs, and that may have gigabytes."""


class FrozenTrainer:
    """Substitute for the trainer in a served copy, with the trainer's counters only."""

    def __init__(self, trainer: Any = None, **values: Any) -> None:
        found = (
            {name: getattr(trainer, name, None) for name in _TRAINER_VALUES} if trainer is not None else {}
        )
        flags = dict.fromkeys(("training", "validating", "testing", "sanity_checking"), False)
        # With a barebones trainer, `self.log` in forward does nothing.
        self.__dict__.update(
            found | flags | {"predicting": True, "evaluating": True, "barebones": True} | values
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"forward reads self.trainer.{name}, which a served model does not have; keep the value in an "
            "attribute of the module"
        )


def parts_of(module: nn.Module) -> dict[str, nn.Module]:
    """Return a module and its submodules by name, each once; compiled ones under their original names."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    waiting = [("", module)]
    while waiting:
        path, part = waiting.pop()
        inner = vars(part)["_modules"]
        if isinstance(part, OptimizedModule):
            waiting.append((path, inner["_orig_mod"]))
            continue
        if id(part) in seen:
            continue
        seen.add(id(part))
        found[path] = part
        prefix = f"{path}." if path else ""
        waiting += ((prefix + name, child) for name, child in inner.items() if child is not None)
    return found


class CopyFailed(Exception):  # noqa: N818 - the caller turns it into a sentence
    """An attribute can't be copied."""


def copy_module(
    module: LightningModule, trainer: FrozenTrainer | None = None, *, heavy: bool = False
) -> tuple[LightningModule, dict[str, str]]:
    """Copy a live module to the CPU, in evaluation mode; the module itself stays untouched.

    Args:
        module: live module.
        trainer: trainer of the copy; None for a substitute of the module's trainer, if it has one.
        heavy: True copies data sets, loaders and optimizers as well.

    Returns:
        The copy, and the reason by skipped attribute.
    """
    live = vars(module).get("_trainer")
    if trainer is None and live is not None:
        trainer = live if isinstance(live, FrozenTrainer) else FrozenTrainer(live)
    copier = _Copier(trainer, heavy=heavy)
    if live is not None:
        copier.memo[id(live)] = trainer
    # Validation hooks run in inference mode, whose tensors no other thread may change.
    with torch.inference_mode(mode=False), torch.no_grad():
        clone: LightningModule = copier.module(module, "")
        clone.to("cpu")
        clone.eval()
    return clone, copier.skipped


class _Copier:
    def __init__(self, trainer: FrozenTrainer | None, *, heavy: bool) -> None:
        self.memo: dict[int, Any] = {}
        self.skipped: dict[str, str] = {}
        self._trainer = trainer
        self._heavy = heavy

    def module(self, module: nn.Module, path: str) -> Any:
        """Copy a module with its submodules; tensors first, since attributes may refer to them."""
        parts = [
            (name, part) for name, part in module.named_modules(prefix=path) if id(part) not in self.memo
        ]
        compiled = [part for _, part in parts if isinstance(part, OptimizedModule)]
        parts = [(name, part) for name, part in parts if not isinstance(part, OptimizedModule)]
        whole = (torch.jit.ScriptModule, torch.fx.GraphModule)
        inside = {id(inner) for _, part in parts if isinstance(part, whole) for inner in part.modules()}
        own = [(name, part) for name, part in parts if id(part) not in inside]
        for _, part in own:
            kind: Any = type(part)
            self.memo[id(part)] = kind.__new__(kind)
        for wrapper in reversed(compiled):  # an inner one first
            original = vars(wrapper)["_modules"]["_orig_mod"]
            if id(original) in self.memo:
                self.memo[id(wrapper)] = self.memo[id(original)]
        for _, part in own:
            clone = vars(self.memo[id(part)])
            for kind in ("_parameters", "_buffers"):
                tensors = vars(part)[kind]
                clone[kind] = type(tensors)((n, self._tensor(t)) for n, t in tensors.items())
        for _, part in parts:
            if isinstance(part, whole) and id(part) not in self.memo:
                copy.deepcopy(part, self.memo)
        for name, part in own:
            self._fill(part, vars(self.memo[id(part)]), f"{name}." if name else "")
        return self.memo[id(module)]

    def _fill(self, part: nn.Module, clone: dict[str, Any], path: str) -> None:
        compiled = vars(part).get("_compiler_ctx") or {}  # Lightning's, of torch.compile(module)
        skipped = {"_parameters", "_buffers", "_compiled_call_impl", "_compiler_ctx"}
        skipped |= {key.removeprefix("original_") for key in compiled}
        clone |= {"_compiler_ctx": None} if "_compiler_ctx" in vars(part) else {}
        for key, value in vars(part).items():
            if key in skipped:
                continue
            if key == "_modules":
                clone[key] = type(value)(
                    (n, None if m is None else self.memo[id(m)]) for n, m in value.items()
                )
            elif key == "_trainer":
                clone[key] = None if value is None else self._trainer
            else:
                try:
                    clone[key] = self.value(value, path + key)
                except CopyFailed as failed:
                    self.skipped[path + key] = str(failed)

    def _tensor(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None or id(tensor) in self.memo:
            return None if tensor is None else self.memo[id(tensor)]
        if is_lazy(tensor) or type(tensor) not in (Tensor, nn.Parameter):
            clone = copy.deepcopy(tensor, self.memo)
        else:
            clone = tensor.detach().to("cpu", copy=True)
            if isinstance(tensor, nn.Parameter):
                clone = nn.Parameter(clone, requires_grad=False)
        clone.requires_grad = False
        self.memo[id(tensor)] = clone
        return clone

    def value(self, value: Any, where: str) -> Any:  # noqa: C901, PLR0911, PLR0912 - a case each type
        """Copy one value.

        Raises:
            CopyFailed: it can't be copied.
        """
        if id(value) in self.memo:
            return self.memo[id(value)]
        kind = type(value)
        if kind in ATOMIC or isinstance(value, type | types.ModuleType):
            return value
        new: Any
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, nn.Module):
            return self.module(value, where)
        if isinstance(value, np.ndarray) and value.dtype != object:
            new = value.copy()
        elif kind in _LOCKS:
            new = _LOCKS[kind]()
        elif isinstance(value, weakref.ReferenceType):
            target = self.memo.get(id(value()))
            new = value if target is None else weakref.ref(target)
        elif isinstance(value, types.MethodType):
            new = types.MethodType(value.__func__, self.value(value.__self__, where))
        elif isinstance(value, types.FunctionType):
            return self._function(value, where)
        elif kind is functools.partial:
            keywords = {k: self.value(v, f"{where}.{k}") for k, v in value.keywords.items()}
            new = functools.partial(
                self.value(value.func, where), *(self.value(v, where) for v in value.args), **keywords
            )
        elif isinstance(value, dict | list):
            return self._container(value, where)
        elif isinstance(value, tuple):
            items = [self._item(item, f"{where}[{i}]") for i, item in enumerate(value)]
            new = kind(*items) if hasattr(kind, "_fields") else kind(items)
        elif isinstance(value, _HEAVY) and not self._heavy:
            raise CopyFailed(f"a {kind.__name__} is not copied")
        else:
            return self._object(value, where)
        self.memo[id(value)] = new
        return new

    def _item(self, item: Any, where: str) -> Any:
        try:
            return self.value(item, where)
        except CopyFailed as failed:
            self.skipped[where] = str(failed)
            return None

    def _container(self, value: Any, where: str) -> Any:
        """Copy a dict without the entries that can't be copied, or a list with None in their places."""
        new = copy.copy(value)
        self.memo[id(value)] = new
        new.clear()
        if isinstance(value, list):
            new.extend(self._item(item, f"{where}[{i}]") for i, item in enumerate(value))
            return new
        for key, item in value.items():
            try:
                new[key] = self.value(item, f"{where}[{key!r}]")
            except CopyFailed as failed:
                self.skipped[f"{where}[{key!r}]"] = str(failed)
        return new

    def _function(self, function: types.FunctionType, where: str) -> Any:
        """Return the function, with the copy in place of the live module in its closure."""
        cells = function.__closure__ or ()
        held = [_held(cell) for cell in cells]
        self.memo[id(function)] = function  # one that refers to itself
        bound = (nn.Module, types.FunctionType, types.MethodType)
        new_held = [
            self.value(item, where) if id(item) in self.memo or isinstance(item, bound) else item
            for item in held
        ]
        if all(new is old for new, old in zip(new_held, held, strict=True)):
            return function
        new = types.FunctionType(
            function.__code__,
            function.__globals__,
            function.__name__,
            function.__defaults__,
            tuple(types.CellType(item) for item in new_held),
        )
        new.__kwdefaults__ = function.__kwdefaults__
        vars(new).update(vars(function))
        self.memo[id(function)] = new
        return new

    def _object(self, value: Any, where: str) -> Any:
        try:
            return copy.deepcopy(value, self.memo)
        except Exception as error:
            self.memo.pop(id(value), None)
            kind = type(value)
            if (
                kind.__module__ in ("builtins", "_io")
                or not hasattr(value, "__dict__")
                or hasattr(value, "__next__")
            ):
                raise CopyFailed(f"{kind.__name__}: {' '.join(str(error).split())[:200]}") from error
        try:
            new = object.__new__(kind)
        except TypeError as error:
            raise CopyFailed(str(error)) from error
        self.memo[id(value)] = new
        for key, item in vars(value).items():
            try:
                vars(new)[key] = self.value(item, f"{where}.{key}")
            except CopyFailed as failed:
                self.skipped[f"{where}.{key}"] = str(failed)
        return new


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty one
        return None
