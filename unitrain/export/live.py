"""The live module's own answers, taken without a trace in its training.

A graph is compared with these: whatever a copy of the module may lack, the live module has it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from unitrain.export.module_copy import FrozenTrainer

_KEPT = (list, dict, set)
_SHARED = frozenset(name for name in vars(nn.Module()) if name not in ("_parameters", "_buffers", "_modules"))


def live_answers(module: LightningModule, run: Any, weights: Mapping[str, Tensor]) -> Any:
    """Run what is served of a live module, in evaluation mode, and leave the module as it was.

    Args:
        run: calls what is served of the module.
        weights: copies of the module's parameters and buffers, for those that its forward changes.
    """
    with untouched(module, weights), _exact(module), torch.no_grad():
        return run(module)


@contextlib.contextmanager
def untouched(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """A block in evaluation mode, after which flags, attributes, tensors and random state are those of before."""
    parts = list(module.modules())
    before = [(vars(part), vars(part).copy()) for part in parts]
    kept = [
        (value, value.copy())
        for _, attributes in before
        for name, value in attributes.items()
        if name not in _SHARED and isinstance(value, _KEPT) and value
    ]
    loose = {
        id(value): (value, value.detach().clone())
        for _, attributes in before
        for value in attributes.values()
        if isinstance(value, Tensor)
    }
    named = [*module.named_parameters(), *module.named_buffers()]
    versions = [_version(tensor) for _, tensor in named]
    loose_versions = [_version(tensor) for tensor, _ in loose.values()]
    try:
        with isolate_rng():
            for attributes, _ in before:
                if attributes["training"]:
                    attributes["training"] = False
                if attributes.get("_trainer") is not None:
                    attributes["_trainer"] = FrozenTrainer(attributes["_trainer"])
            yield
    finally:
        for attributes, saved in before:
            if len(attributes) != len(saved) or any(
                attributes.get(name) is not value for name, value in saved.items()
            ):
                attributes.clear()
                attributes.update(saved)
        for value, saved_value in kept:
            _restore(value, saved_value)
        changed = [
            (tensor, weights.get(name))
            for (name, tensor), version in zip(named, versions, strict=True)
            if version is None or _version(tensor) != version
        ]
        changed += [
            pair
            for pair, version in zip(loose.values(), loose_versions, strict=True)
            if version is None or _version(pair[0]) != version
        ]
        with torch.inference_mode(), torch.no_grad():
            for tensor, saved_tensor in changed:
                if saved_tensor is not None:
                    tensor.copy_(saved_tensor)


def _restore(value: Any, saved: Any) -> None:
    """Give a list, dict or set its former content; most have it still."""
    same = len(value) == len(saved)
    if same and isinstance(value, dict):
        same = all(value.get(key) is item for key, item in saved.items())
    elif same and isinstance(value, list):
        same = all(new is old for new, old in zip(value, saved, strict=True))
    elif same:
        same = value == saved
    if not same:
        value.clear()
        if isinstance(value, list):
            value.extend(saved)
        else:
            value.update(saved)


def _version(tensor: Tensor) -> int | None:
    """A number that each change in place raises; None for a tensor made in inference mode, which has none."""
    return None if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def _exact(module: LightningModule) -> Iterator[None]:
    """A block in full precision: neither autocast, nor TF32, nor anything compiled for it."""
    device = module.device.type
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if hasattr(torch.compiler, "set_stance"):
            # A batch of another size would be compiled for, and what the training runs might change.
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
    """Outputs as arrays on the CPU."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in outputs.items()}
