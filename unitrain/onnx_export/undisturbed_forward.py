"""Outputs of the live module, computed without an effect on its training.

A graph is compared with these, since a copy of the module may lack something that the live module has.
"""

import contextlib
from collections.abc import Iterator, Mapping
from operator import is_
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from unitrain.onnx_export.module_copy import FrozenTrainer, parts_of

_KEPT = (list, dict, set)
_SHARED = frozenset(name for name in vars(nn.Module()) if name not in ("_parameters", "_buffers", "_modules"))


def live_answers(module: LightningModule, run: Any, weights: Mapping[str, Tensor]) -> Any:
    """Run the served function of a live module in evaluation mode, and restore the module.

    Args:
        module: live module.
        run: function that calls the served function of a module.
        weights: copies of the module's parameters and buffers, which restore those that forward changes.
    """
    with untouched(module, weights), _exact(module), torch.no_grad():
        return run(module)


@contextlib.contextmanager
def untouched(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:  # noqa: C901, PLR0912
    """Run a block in evaluation mode, and restore flags, attributes, tensors and random state after it."""
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    kept: list[tuple[Any, Any]] = []  # lists, dicts and sets, with their content
    loose: list[tuple[Tensor, Tensor]] = []  # plain attributes, with their values
    registered: list[Tensor] = []
    for part in parts_of(module).values():
        attributes = vars(part)
        before.append((attributes, attributes.copy()))
        registered += (t for t in attributes["_parameters"].values() if t is not None)
        registered += (t for t in attributes["_buffers"].values() if t is not None)
        for name in attributes.keys() - _SHARED:
            value = attributes[name]
            if isinstance(value, _KEPT):
                kept.append((value, value.copy()))
            elif isinstance(value, Tensor):
                loose.append((value, value.detach().clone()))
    versions = [_version(tensor) for tensor in registered]
    try:
        with isolate_rng():
            for attributes, _ in before:
                if attributes["training"]:
                    attributes["training"] = False
                if attributes.get("_trainer") is not None:
                    attributes["_trainer"] = FrozenTrainer(attributes["_trainer"])
            yield
    finally:
        for attributes, former in before:
            if len(attributes) != len(former) or not all(map(is_, attributes.values(), former.values())):
                attributes.clear()
                attributes.update(former)
        for value, content in kept:
            _restore(value, content)
        changed = [t for t, v in zip(registered, versions, strict=True) if v is None or _version(t) != v]
        if changed or loose:
            named = {id(t): weights[name] for name, t in _named(module) if name in weights}
            with torch.inference_mode(), torch.no_grad():
                for tensor in changed:
                    tensor.copy_(named[id(tensor)])
                for tensor, saved in loose:
                    if not torch.equal(tensor, saved):
                        tensor.copy_(saved)


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, part in parts_of(module).items():
        for kind in ("_parameters", "_buffers"):
            for name, tensor in vars(part)[kind].items():
                if tensor is not None:
                    yield f"{path}.{name}" if path else name, tensor


def _restore(value: Any, saved: Any) -> None:
    """Restore the content of a list, dict or set, if it changed."""
    if isinstance(value, set):
        same = value == saved
    else:
        pair = (value.values(), saved.values()) if isinstance(value, dict) else (value, saved)
        same = len(value) == len(saved) and all(map(is_, *pair))
    if not same:
        value.clear()
        if isinstance(value, list):
            value.extend(saved)
        else:
            value.update(saved)


def _version(tensor: Tensor) -> int | None:
    """Return the number that each change in place increments; None for a tensor of inference mode."""
    try:
        return tensor._version  # noqa: SLF001 - it has no public name
    except RuntimeError:
        return None


@contextlib.contextmanager
def _exact(module: LightningModule) -> Iterator[None]:
    """Run a block in full precision: without autocast, TF32 and compilation."""
    device = module.device.type
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if hasattr(torch.compiler, "set_stance"):
            # A batch of another size would be compiled, which may change the training's compiled graph.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if device == "cuda":
            stack.enter_context(torch.autocast("cuda", enabled=False))
            before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            stack.callback(_allow_tf32, *before)
        yield


def _allow_tf32(matmul: bool, cudnn: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, cudnn


def to_arrays(outputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copy outputs to arrays on the CPU, since an output that is a weight would change with the training."""
    return {name: tensor.detach().to("cpu", copy=True).numpy() for name, tensor in outputs.items()}
