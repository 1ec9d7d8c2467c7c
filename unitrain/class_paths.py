"""Project root of a user's code, and import of the classes that settings name."""

import difflib
import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

from unitrain.errors import SettingsError
from unitrain.import_aliases import LIBRARY

_MARKS = ("models", "pyproject.toml")


def project_root(start: Path) -> Path:
    """Return the nearest folder at or above `start` that has models/ or pyproject.toml, else the working folder.

    Args:
        start: a settings file or a folder; it need not exist.
    """
    start = start.absolute()
    for folder in (start, *start.parents):
        if (folder / _MARKS[0]).is_dir() or (folder / _MARKS[1]).is_file():
            return folder.resolve()
    return Path.cwd()


def import_class(class_path: str, root: Path, *, functions: bool = False) -> Any:
    """Import the class that `class_path` names, from `root` before any other folder.

    `root` stays the first entry of the import path, so later imports of the module are found.

    Args:
        class_path: `package.module.Class`.
        root: the project root.
        functions: also take a function, or a class method as `package.module.Class.method`, whose return annotation is
            a class.

    Raises:
        SettingsError: the path is malformed, the module is missing or fails to import, or has no such class.
    """
    module_name, _, name = class_path.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in class_path.split(".")):
        raise SettingsError(f"class path: expected `package.module.Class`, got `{class_path}`")
    _put_first(root)
    _forget_other_projects(module_name, root)
    _prefer_folder(module_name.partition(".")[0], root)
    owner, _, method = module_name.rpartition(".")
    if functions and method[:1].isupper() and owner and not _is_module(module_name):
        kind = import_class(module_name, root)
        if callable(found := getattr(kind, name, None)):
            return _factory(found, class_path)
        raise SettingsError(
            f"class path `{class_path}`: {method} has no method {name}{_near(name, dir(kind))}"
        )
    module = _import(module_name, class_path, root)
    found = getattr(module, name, None)
    if isinstance(found, type):
        return found
    if functions and isinstance(found, FunctionType):
        return _factory(found, class_path)
    classes = [n for n, value in vars(module).items() if isinstance(value, type)]
    what = "is not a class" if found is not None else "does not exist"
    raise SettingsError(
        f"class path `{class_path}`: `{name}` {what} in {_place(module)}{_near(name, classes)}"
    )


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _factory(function: Any, class_path: str) -> Any:
    """Return the function if its return annotation is a class."""
    try:
        made = get_type_hints(function).get("return")
    except Exception as error:
        raise SettingsError(
            f"class path `{class_path}`: the annotations of this function can't be read: {error}"
        ) from error
    if not isinstance(made, type):
        raise SettingsError(
            f"class path `{class_path}`: a function must be annotated with the class it returns, as "
            f"`def {function.__name__}(...) -> Model`"
        )
    return function


def _put_first(root: Path) -> None:
    entry = str(root)
    if sys.path[:1] != [entry]:
        sys.path[:] = [entry, *(p for p in sys.path if p != entry)]
        importlib.invalidate_caches()


def _forget_other_projects(module_name: str, root: Path) -> None:
    """Drop modules of another project that has a package of the same name (such as `models`)."""
    top = module_name.partition(".")[0]
    if not ((root / top).is_dir() or (root / f"{top}.py").is_file()):
        return
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != top:
            continue
        places = [module.__file__] if getattr(module, "__file__", None) else getattr(module, "__path__", [])
        if not any(Path(p).resolve().is_relative_to(root.resolve()) for p in map(str, places)):
            del sys.modules[name]


def _prefer_folder(top: str, root: Path) -> None:
    """Make the project's own folder the package of that name.

    A folder without an `__init__.py` would lose to any package of its name further down the import path.
    """
    folder = root / top
    if top in sys.modules or not folder.is_dir() or (folder / "__init__.py").exists():
        return
    spec = ModuleSpec(top, None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    sys.modules[top] = module_from_spec(spec)


def _import(module_name: str, class_path: str, root: Path) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise SettingsError(f"class path `{class_path}`: its module needs `{error.name}`, "
                                "which is not installed") from error  # fmt: skip
        parent, _, leaf = error.name.rpartition(".")
        near = _near(leaf, _modules_of(parent, root), f"{parent}." if parent else "")
        if module_name.partition(".")[0] in LIBRARY and _is_module(f"unitrain.{module_name}"):
            near = f"; did you mean `unitrain.{class_path}`?"
        raise SettingsError(
            f"class path `{class_path}`: there is no module `{error.name}` in {root} or among the installed "
            f"packages{near}"
        ) from error
    except Exception as error:
        where = line_in_project(error, root)
        text = " ".join(str(error).split())
        raise SettingsError(
            f"class path `{class_path}`: importing its module failed{where} with {type(error).__name__}: {text}"
        ) from error


def line_in_project(error: Exception, root: Path) -> str:
    """Return ` at file:line` in the project, the origin of an error; empty if it has another origin."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}:{error.lineno}"
    where, traceback = "", error.__traceback__
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if Path(file).is_relative_to(root):
            where = f" at {file}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return where


def _modules_of(parent: str, root: Path) -> list[str]:
    folders = [root]
    if parent:
        spec = find_spec(parent)
        folders = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    return [p.stem for folder in folders if folder.is_dir() for p in folder.iterdir()
            if p.suffix == ".py" or p.is_dir()]  # fmt: skip


def _place(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or module.__name__


def _near(name: str, names: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean `{prefix}{near[0]}`?" if near else ""
