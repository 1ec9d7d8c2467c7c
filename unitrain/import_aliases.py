"""Import hooks that give one module two names, for Lightning and for the library of models and data modules.

Lightning is published twice, as `pytorch-lightning` and as `lightning`, with the same code. Without a hook,
`lightning.pytorch.LightningModule` is another class than `pytorch_lightning.LightningModule`, and neither package
accepts the other's modules, callbacks or loggers. The hook gives both names to the modules that were imported first.

The library's canonical names are `unitrain.models` and `unitrain.datamodules`. In a clone these are links to the
top-level folders `models/` and `datamodules/`, which can also be imported by their shorter names: `models.unet.UNet`
is `unitrain.models.unet.UNet`. A project's own `models/` folder is not affected.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}
"""Packages of `lightning` → the same packages under their own names."""
_OWN_FILES = ("__about__", "__version__", "__setup__")
"""Files of a package that the other package lacks."""

LIBRARY = ("models", "datamodules")
"""Packages of the library, by their names in a clone."""
MOVED = {
    "models.curve": "examples.curve_fitting.model",
    "models.diabetes": "examples.bring_your_own.model",
    "models.uncertainty": "examples.uncertainty.model",
    "datamodules.auto_mpg": "examples.hyperparameter_search.data",
    "datamodules.curve": "examples.curve_fitting.data",
    "datamodules.diabetes": "examples.bring_your_own.data",
    "datamodules.digit_codes": "examples.generative.data",
    "datamodules.digits": "examples.images.data",
    "datamodules.kinked": "examples.uncertainty.data",
    "datamodules.mnist": "examples.images.data",
    "datamodules.nuclei": "examples.segmentation.data",
    "datamodules.series": "examples.forecasting.data",
    "datamodules.signals": "examples.signals_clustering.data",
}
"""Former name → name of a module that belongs to an example; runs of 0.1 contain the former names."""


class LightningFinder(MetaPathFinder):
    """Import hook that resolves a module's second name to the module that its first name has loaded.

    `pytorch_lightning` is the real one, unless `lightning` was imported before this hook was installed.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of an alias; None for a module to be loaded as usual."""
        real = self._real_name(fullname)
        if real is None or fullname.rpartition(".")[2] in _OWN_FILES:
            return None
        return _alias_spec(fullname, real)

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


class LibraryFinder(MetaPathFinder):
    """Import hook that resolves a clone's `models.x` and `datamodules.x` to the library's modules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of an alias; None for a module to be loaded as usual."""
        top, _, inner = fullname.partition(".")
        module = sys.modules.get(top) if inner and top in LIBRARY else None
        if module is None or module.__name__ != f"unitrain.{top}":
            return None
        return _alias_spec(fullname, canonical_name(fullname))


class _AliasLoader(Loader):
    """Loader that gives a loaded module a second name in `sys.modules`."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has replaced it by the alias's


def install_aliases() -> None:
    """Install the import hooks, once."""
    for kind in (LightningFinder, LibraryFinder):
        if not any(isinstance(finder, kind) for finder in sys.meta_path):
            sys.meta_path.insert(0, kind())


def share_package(name: str, file: str) -> None:
    """Replace a clone's package `models` or `datamodules` by the library's; each of the two calls it.

    Args:
        name: `__name__` of the package.
        file: `__file__` of the package. A copy of the folder in another project remains that project's package.
    """
    if name in LIBRARY:
        library = import_module(f"unitrain.{name}")
        if Path(file).resolve() == Path(str(library.__file__)).resolve():
            sys.modules[name] = library


def canonical_name(name: str) -> str:
    """Return the canonical name of a module or class of the library or of an example, else the name unchanged.

    Args:
        name: dotted name; `models.unet` and `models.unet.UNet` are names that a clone and runs of 0.1 have.
    """
    for former, moved in MOVED.items():
        if name == former or name.startswith(f"{former}."):
            return moved + name[len(former) :]
    return f"unitrain.{name}" if name.partition(".")[0] in LIBRARY else name


def with_canonical_names(settings: Any) -> Any:
    """Return settings whose class paths have the canonical name wherever the loaded module has an alias."""
    if isinstance(settings, list):
        return [with_canonical_names(item) for item in settings]
    if not isinstance(settings, Mapping):
        return settings
    found = {key: with_canonical_names(value) for key, value in settings.items()}
    class_path = found.get("class_path")
    if isinstance(class_path, str) and class_path.partition(".")[0] in LIBRARY:
        module, _, name = class_path.rpartition(".")
        loaded = sys.modules.get(module)
        found["class_path"] = f"{loaded.__name__}.{name}" if loaded else class_path
    return found


def former_name(name: str) -> str:
    """Return the name that a module or class had in 0.1, for hashes that are compared with those of 0.1."""
    for former, moved in MOVED.items():
        if name.startswith(f"{moved}."):
            return former + name[len(moved) :]
    return name.removeprefix("unitrain.") if package_of(name) != "unitrain" else name


def package_of(name: str) -> str:
    """Return the top-level package of a module, which is `unitrain.models` or `unitrain.datamodules` for the library.

    The library is treated as user code where unitrain's own code is not.
    """
    top, _, rest = name.partition(".")
    inner = rest.partition(".")[0]
    return f"{top}.{inner}" if top == "unitrain" and inner in LIBRARY else top


def is_of_other_lightning(kind: type) -> bool:
    """Return whether a class derives from a second copy of Lightning, loaded before unitrain beside the first one."""
    both = all(map(_is_real, ("lightning.pytorch", "pytorch_lightning")))
    return both and any(base.__module__.startswith("lightning.") for base in kind.__mro__)


def _alias_spec(name: str, real: str) -> ModuleSpec | None:
    """Return the spec that gives the module `real` a second name; None if there is no such module."""
    try:
        module = import_module(real)
    except ModuleNotFoundError as error:
        if error.name == real:
            return None
        raise
    return ModuleSpec(name, _AliasLoader(module), is_package=hasattr(module, "__path__"))


def _is_real(name: str) -> bool:
    """Return whether a module is loaded under this name, as itself rather than as an alias."""
    module = sys.modules.get(name)
    return module is not None and module.__name__ == name
