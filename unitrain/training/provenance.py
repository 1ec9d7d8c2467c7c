"""What a run was made of: the project's own code, its git state, the versions of the parts."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from unitrain.module_aliases import package_of

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "numpy",
    "onnx",
    "onnxruntime",
    "tensorboard",
    "torchmetrics",
    "unitrain",
)


def copy_sources(root: Path, sources_dir: Path) -> str:
    """Copy the project's imported code into a folder; the SHA-256 over all of it.

    What is copied are the modules now imported whose files lie below `root`, outside of environments and of
    unitrain itself, under their paths relative to `root`. The library counts as the project's where it lies below `root`.
    """
    files = sorted({path for module in list(sys.modules.values()) if (path := _own_file(module, root))})
    digest = hashlib.sha256()
    for file in files:
        relative = file.relative_to(root)
        data = file.read_bytes()
        digest.update(f"{relative}\0{len(data)}\0".encode())
        digest.update(data)
        target = sources_dir / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Versions of Python and the packages, and the number of torch's threads."""
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return {"versions": versions, "threads": torch.get_num_threads()}


def git_state(root: Path) -> dict[str, Any] | None:
    """The commit of the project's checkout and its uncommitted changes; None where it is no checkout."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(root, "diff", "HEAD") or ""
    return {"commit": commit.strip(), "dirty": bool(diff), "diff": diff[:200_000]}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout


def _own_file(module: ModuleType, root: Path) -> Path | None:
    name = getattr(module, "__file__", None)
    if not name or package_of(module.__name__) in ("unitrain", "__main__"):
        return None
    if _is_installed(name, str(root)):  # thousands of modules, which the disk need not be asked about
        return None
    path = Path(name)
    if not path.is_absolute() or not path.is_file():  # some of torch's modules name a file that isn't there
        return None
    path = path.resolve()
    if path.suffix != ".py" or not path.is_relative_to(root):
        return None
    parts = set(path.relative_to(root).parts)
    return None if parts & {"site-packages", "dist-packages"} else path


def _is_installed(file: str, root: str) -> bool:
    """Whether a file is certainly of an environment or of Python itself, by its path alone."""
    return any(file.startswith(place) and not root.startswith(place) for place in _installed_places())


@cache
def _installed_places() -> tuple[str, ...]:
    return tuple({f"{sysconfig.get_path(kind)}{os.sep}" for kind in ("purelib", "platlib", "stdlib")})
