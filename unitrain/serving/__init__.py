"""Serve a model repository with Triton: a `Server` for Python, and the supervisor behind `python -m unitrain serve`.

Data crosses the room in this order: a version folder on disk, verified, loaded into Triton, probed, reported as events.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unitrain.serving.background_server import Server
    from unitrain.serving.status import ServerStatus, server_status
    from unitrain.serving.supervisor import Supervisor

__all__ = ["Server", "ServerStatus", "Supervisor", "server_status"]

_HOMES = {
    "Server": "unitrain.serving.background_server",
    "ServerStatus": "unitrain.serving.status",
    "Supervisor": "unitrain.serving.supervisor",
    "server_status": "unitrain.serving.status",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unitrain.serving' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
