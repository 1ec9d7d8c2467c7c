"""Weights of a module as named tensors: copy, load and perturb them.

Weights are parameters and all buffers. A state_dict lacks the non-persistent buffers, but a graph has them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights_of(module: nn.Module, instead: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Copy a module's parameters and buffers by name to the CPU; a tied tensor is one copy under each name.

    Args:
        module: the module.
        instead: tensors that replace the module's tensors of the same names.
    """
    copies: dict[int, Tensor] = {}
    weights = {}
    for named in (
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    ):
        for name, own in named:
            tensor = (instead or {}).get(name, own)
            if id(tensor) not in copies:
                copies[id(tensor)] = tensor.detach().to("cpu", copy=True)
            original_name = name.replace("_orig_mod.", "")  # the name without torch.compile
            weights[original_name] = copies[id(tensor)]
    return weights


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a module in place; unknown names are ignored."""
    with torch.no_grad():
        for name, tensor in _named_tensors(module).items():
            if name in weights:
                tensor.copy_(weights[name])


def perturbed(weights: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Return slightly different weights; positive floating-point values stay positive.

    Integer buffers (tables of indices, counters) stay unchanged, since another value may be out of range.
    """
    generator = torch.Generator().manual_seed(seed)
    moved: dict[int, Tensor] = {}  # tied weights are one tensor under two names, and must stay one
    for tensor in weights.values():
        if id(tensor) in moved or tensor.layout is not torch.strided:
            continue
        if tensor.is_complex():
            moved[id(tensor)] = torch.view_as_complex(_moved(torch.view_as_real(tensor), generator))
        elif tensor.is_floating_point():
            moved[id(tensor)] = _moved(tensor, generator)
    return {name: moved.get(id(tensor), tensor) for name, tensor in weights.items()}


def _moved(tensor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    return tensor * (1 + 0.1 * noise.clamp(-3, 3)) + 0.01 * noise.abs()


def _named_tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())
