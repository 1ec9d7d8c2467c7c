"""A module's plain attributes: numbers, texts and switches that its forward may read.

A graph has them as constants. A temperature that a training lowers by `self.temperature *= 0.9` is one.
"""

from collections.abc import Mapping

from torch import nn

Attributes = Mapping[str, Mapping[str, object]]
"""By submodule's name, by attribute."""


def attributes_of(module: nn.Module) -> Attributes:
    """The public attributes of a module and of all in it that are bool, int, float or str."""
    return {
        name: {
            key: value
            for key, value in vars(part).items()
            if isinstance(value, bool | int | float | str) and key != "training" and not key.startswith("_")
        }
        for name, part in module.named_modules()
    }


def load_attributes(module: nn.Module, attributes: Attributes) -> None:
    """Set them on a module; parts that it lacks are passed over."""
    for name, part in module.named_modules():
        vars(part).update(attributes.get(name, {}))
