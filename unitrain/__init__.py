"""Train, monitor, evaluate, deploy and serve PyTorch models in one way.

Names are imported when they are first used, so `import unitrain` costs next to nothing and never
brings torch in by itself. From here on `lightning` and `pytorch_lightning` are one package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unitrain.module_aliases import install_aliases

if TYPE_CHECKING:
    from unitrain.client import Client, ClientIO
    from unitrain.module import UnitrainModule
    from unitrain.training import RunResult, fit, resume

__version__ = "0.2.0"
__all__ = ["Client", "ClientIO", "RunResult", "UnitrainModule", "__version__", "fit", "resume"]

_HOMES = {
    "Client": "unitrain.client",
    "ClientIO": "unitrain.client",
    "RunResult": "unitrain.training",
    "UnitrainModule": "unitrain.module",
    "fit": "unitrain.training",
    "resume": "unitrain.training",
}


install_aliases()


def __getattr__(name: str) -> Any:
    if name == "ServableModule":  # its name until 0.2
        return import_module("unitrain.module").ServableModule
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unitrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
