"""Triton on this machine: find or install it, start it, end it.

Data crosses the room in this order: a `Distribution` (which Triton), a `Launch` (its settings), a `TritonProcess`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unitrain.serving.triton.distribution import Distribution, find_triton
    from unitrain.serving.triton.process import Launch, TritonProcess
    from unitrain.serving.triton.standalone_commands import plain_commands

__all__ = ["Distribution", "Launch", "TritonProcess", "find_triton", "plain_commands"]

_HOMES = {
    "Distribution": "unitrain.serving.triton.distribution",
    "Launch": "unitrain.serving.triton.process",
    "TritonProcess": "unitrain.serving.triton.process",
    "find_triton": "unitrain.serving.triton.distribution",
    "plain_commands": "unitrain.serving.triton.standalone_commands",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unitrain.serving.triton' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
