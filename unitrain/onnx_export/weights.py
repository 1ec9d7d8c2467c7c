"""A module's weights as named tensors: taken, put back, moved a little.

Weights are parameters and buffers, the non-persistent ones too: a state_dict leaves those out, but a
graph holds them.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights_of(module: nn.Module, instead: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Copies of a module's parameters and buffers by name, on the CPU; a tied one is one copy under each name.

    Args:
        instead: tensors that take the place of the module's own of their names.
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
            weights[name.replace("_orig_mod.", "")] = copies[
                id(tensor)
            ]  # as it is called where it is not compiled
    return weights


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a module in place; names that it lacks are passed over."""
    with torch.no_grad():
        for name, tensor in _named_tensors(module).items():
            if name in weights:
                tensor.copy_(weights[name])


def perturbed(weights: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Other weights of the same kind: every floating-point value a little off, positive ones kept positive.

    Integer buffers (tables of indices, counters) stay as they are: another value may be out of range.
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
