"""One Lightning under both of its names: `pytorch_lightning` and `lightning.pytorch` are the same modules.

Lightning is published twice, as `pytorch-lightning` and as `lightning`, with the same code. Imported as they are,
`lightning.pytorch.LightningModule` is another class than `pytorch_lightning.LightningModule`, and neither takes the
other's modules, callbacks or loggers. An import hook gives both names to the modules that were imported first.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

NAMES = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}
"""Packages of `lightning` → the same packages under their own names."""
_OWN_FILES = ("__about__", "__version__", "__setup__")
"""Files of a package that the other does not have."""


class LightningFinder(MetaPathFinder):
    """Import hook that answers a module's second name with the module that its first name has loaded.

    `pytorch_lightning` is the real one, unless `lightning` was imported before this hook was installed.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of an alias; None for a module to be loaded as usual."""
        real = self._real_name(fullname)
        if real is None or fullname.rpartition(".")[2] in _OWN_FILES:
            return None
        try:
            module = import_module(real)
        except ModuleNotFoundError as error:
            if error.name == real:
                return None
            raise
        return ModuleSpec(fullname, _AliasLoader(module), is_package=hasattr(module, "__path__"))

    @staticmethod
    def _real_name(fullname: str) -> str | None:
        for nested, own in NAMES.items():
            lightning_came_first = _is_real(nested)
            name, real = (own, nested) if lightning_came_first else (nested, own)
            if _is_real(name):
                continue  # both are loaded already: it is too late
            if fullname == name or fullname.startswith(f"{name}."):
                return real + fullname[len(name) :]
        return None


class _AliasLoader(Loader):
    """Give a loaded module a second name in `sys.modules`."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the alias's in its place


def install_alias() -> None:
    """Install the import hook, once."""
    if not any(isinstance(finder, LightningFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, LightningFinder())


def is_of_other_lightning(kind: type) -> bool:
    """Return True if a class derives from a second copy of Lightning that was loaded before unitrain."""
    both = all(map(_is_real, ("lightning.pytorch", "pytorch_lightning")))
    return both and any(base.__module__.startswith("lightning.") for base in kind.__mro__)


def _is_real(name: str) -> bool:
    """Return True if a module is loaded under this name and is no alias."""
    module = sys.modules.get(name)
    return module is not None and module.__name__ == name
