"""Refuse a loss that broadcasts its operands: [48] and [48, 1] give a loss over 48 x 48 unintended pairs."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unitrain.errors import HookError
from unitrain.import_aliases import package_of

LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
"""Losses of torch that broadcast with a warning; its other losses raise an error."""
ELEMENTWISE = frozenset(
    ["add", "sub", "subtract", "rsub", "mul", "multiply", "div", "divide", "true_divide", "pow", "eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum", "__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__eq__", "__ne__", "poisson_nll_loss", "kl_div"]
)  # fmt: skip
CASTS = frozenset(
    [
        "to",
        "float",
        "double",
        "half",
        "bfloat16",
        "long",
        "int",
        "type",
        "clone",
        "detach",
        "contiguous",
        "view",
        "reshape",
    ]
)
"""Operations after which a column still counts as made on purpose."""
_LIBRARIES = ("torch", "pytorch_lightning", "lightning_fabric", "lightning", "torchmetrics", "unitrain")


class BroadcastCheck(TorchFunctionMode):
    """Raise an error if a loss, or an elementwise operation on [n] and [n, 1], broadcasts its operands.

    A column [n, 1] that the code has made of a vector [n] by `unsqueeze`, `[:, None]`, `reshape` or `keepdim`
    is broadcast on purpose. The same holds for parameters and buffers.

    Args:
        module: module with the parameters and buffers that may be broadcast.

    Raises:
        HookError: an operand is broadcast; the message has both shapes and the line of the user's code.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._columns: dict[int, Tensor] = {}  # a reference keeps the id unique
        self._weights = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)][:2]
        if len(operands) == 2:  # noqa: PLR2004 - a pair
            if name in LOSSES:
                self._check_loss(name, *operands)
            elif name in ELEMENTWISE:
                self._check_pair(name.strip("_"), *operands)
        result = func(*args, **kwargs)
        if (
            isinstance(result, Tensor)
            and _is_column(result)
            and self._is_made_on_purpose(name, result, args, kwargs)
        ):
            self._columns[id(result)] = result
        return result

    def _is_made_on_purpose(
        self, name: str, column: Tensor, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> bool:
        """Return True if the code makes a column on purpose: from a vector or such a column, or by keeping an axis."""
        if kwargs.get("keepdim") or any(value is True for value in args[1:]):
            return True
        given = [value for value in args if isinstance(value, Tensor)]
        if any(value.dim() == 1 and len(value) == len(column) for value in given):
            return True
        return name in CASTS | ELEMENTWISE and any(id(value) in self._columns for value in given)

    def _check_loss(self, name: str, first: Tensor, second: Tensor) -> None:
        if first.shape != second.shape and min(first.numel(), second.numel()) > 1:
            raise _refusal(name, first, second)

    def _check_pair(self, name: str, first: Tensor, second: Tensor) -> None:
        column, vector = (first, second) if first.dim() > second.dim() else (second, first)
        if not _is_column(column) or vector.dim() != 1 or len(vector) != len(column):
            return
        if id(column) in self._columns or {id(column), id(vector)} & self._weights:
            return
        raise _refusal(name, first, second)


class LossShapeCheck(Callback):
    """Check the first training step and the first validation step of a process for broadcasting losses."""

    def __init__(self) -> None:
        self._mode: BroadcastCheck | None = None
        self._done: set[str] = set()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._begin("train", pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if pl_module.automatic_optimization:
            self._end()

    def on_train_batch_end(self, *_: Any) -> None:
        self._end()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        self._begin("validation", pl_module)

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._end()

    def _begin(self, stage: str, module: LightningModule) -> None:
        if stage in self._done:
            return
        self._done.add(stage)
        if not _is_compiled(module):
            self._mode = BroadcastCheck(module)
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def _end(self) -> None:
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


def _is_column(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and tensor.shape[1] == 1 and len(tensor) > 1  # noqa: PLR2004 - [n, 1]


def _is_compiled(module: LightningModule) -> bool:
    """Return True if a part of a module is compiled: the check would compile it again."""
    return any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )


def _refusal(name: str, first: Tensor, second: Tensor) -> HookError:
    shapes = [list(tensor.shape) for tensor in (first, second)]
    try:
        result = f" to {list(np.broadcast_shapes(first.shape, second.shape))}"
    except ValueError:
        result = ""
    return HookError(
        f"{name}{_place()} broadcasts {shapes[0]} against {shapes[1]}{result}; give both one shape by squeeze or "
        "unsqueeze, or broadcast on purpose by `[:, None]` or expand_as"
    )


def _place() -> str:
    """Return ` at file:line` of the innermost frame outside of libraries."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - Python's way to the stack
    while frame is not None:
        package = package_of(str(frame.f_globals.get("__name__", "")))
        if package not in _LIBRARIES and "site-packages" not in Path(frame.f_code.co_filename).parts:
            return f" at {frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
