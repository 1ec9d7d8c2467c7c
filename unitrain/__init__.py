"""Train, monitor, evaluate, deploy and serve PyTorch models in one way.

Public names are imported at their first use: `import unitrain` is fast and does not import torch. After it,
`lightning` and `pytorch_lightning` are one package.

Example:
    >>> import unitrain
    >>> unitrain.UnitrainError.exit_code
    1
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unitrain.import_aliases import install_aliases

if TYPE_CHECKING:
    from unitrain.client import Client, ClientIO
    from unitrain.errors import UnitrainError
    from unitrain.loaders import ArrayLoader, DatasetLoader
    from unitrain.module import UnitrainModule
    from unitrain.runs import load_run
    from unitrain.serving import Server
    from unitrain.training import RunResult, evaluate, export, fit, load_model, resume

__version__ = "0.2.0"
__all__ = [
    "ArrayLoader",
    "Client",
    "ClientIO",
    "DatasetLoader",
    "RunResult",
    "Server",
    "UnitrainError",
    "UnitrainModule",
    "__version__",
    "evaluate",
    "export",
    "fit",
    "load_model",
    "load_run",
    "resume",
]

_HOMES = {
    "ArrayLoader": "unitrain.loaders",
    "Client": "unitrain.client",
    "ClientIO": "unitrain.client",
    "DatasetLoader": "unitrain.loaders",
    "RunResult": "unitrain.training",
    "Server": "unitrain.serving",
    "UnitrainError": "unitrain.errors",
    "UnitrainModule": "unitrain.module",
    "evaluate": "unitrain.training",
    "export": "unitrain.training",
    "fit": "unitrain.training",
    "load_model": "unitrain.training",
    "load_run": "unitrain.runs",
    "resume": "unitrain.training",
}
"""Package or module of each public name."""


install_aliases()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "ServableModule":  # name of UnitrainModule until 0.2
        return import_module("unitrain.module").ServableModule
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unitrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
