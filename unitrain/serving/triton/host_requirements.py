"""Requirements of the wheel's Triton on the machine and on Python."""

import ctypes.util
import os
import platform
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from unitrain.errors import ServingError
from unitrain.serving.triton import wheel as install

OLDEST_GLIBC = (2, 35)
STUB_VERSIONS = ((3, 11), (3, 12), (3, 13))
"""Python versions that unitrain supports and the wheel has a stub for."""
_BUNDLED_LIBPYTHON = (3, 13)
PLAIN_PATH = re.compile(r"[\w./@%+=:,-]+")
"""Paths that a shell does not change: Triton gives paths to a shell, unquoted."""
_CONTAINER = "NVIDIA's container: python -m unitrain serve --container docker"


@dataclass(frozen=True)
class Host:
    """Properties of a machine and of its Python.

    Attributes:
        system, machine: names from `platform`.
        glibc: version of glibc; None for another C library.
        python: (major, minor).
        has_libpython: True if the shared library of this Python was found.
        base_prefix: folder in which this Python is installed.
        has_python3: True if `python_dir` has a program `python3`.
        python_dir: folder of the interpreter.
        cache_dir: folder in which the wheel is unpacked.
    """

    system: str
    machine: str
    glibc: tuple[int, ...] | None
    python: tuple[int, int]
    has_libpython: bool
    base_prefix: str
    has_python3: bool
    python_dir: Path
    cache_dir: Path

    def problem(self) -> str | None:
        """Return why the wheel's Triton can't run on it, and what to do; None if it can."""
        if (self.system, self.machine) != ("Linux", "x86_64"):
            return f"the Triton wheel needs Linux on x86_64, this is {self.system} on {self.machine}; use {_CONTAINER}"
        if self.glibc is None or self.glibc < OLDEST_GLIBC:
            found = f"has {_dotted(self.glibc)}" if self.glibc else "has another C library"
            return (
                f"the Triton wheel needs glibc {_dotted(OLDEST_GLIBC)} or newer, this system {found}; "
                f"use a newer distribution or {_CONTAINER}"
            )
        if self.python not in STUB_VERSIONS:
            known = ", ".join(map(_dotted, STUB_VERSIONS))
            return (
                f"the Triton wheel runs models with Python {known}, this is {_dotted(self.python)}; "
                f"use one of these, or {_CONTAINER}"
            )
        return self._problem_of_environment()

    def _problem_of_environment(self) -> str | None:
        if not self.has_libpython:
            version = _dotted(self.python)
            return (
                f"Triton runs models with libpython{version}.so.1.0, which this Python ({self.base_prefix}) was built "
                f"without; use a Python built with --enable-shared, or install libpython{version}"
            )
        if not self.has_python3:
            return (
                f"Triton finds the environment by a program `python3`, and {self.python_dir} has none; run unitrain "
                "from a virtual environment (python -m venv)"
            )
        if not PLAIN_PATH.fullmatch(str(self.cache_dir)):
            return (
                f"Triton can't run from the cache folder {str(self.cache_dir)!r}, since it gives the path to a shell, "
                "unquoted; set UNITRAIN_CACHE to a path without spaces, and use letters and digits in it"
            )
        return None


def this_host() -> Host:
    """Return the properties of this machine and this Python."""
    folder = Path(sys.executable).parent
    python = sys.version_info[:2]
    return Host(
        system=platform.system(),
        machine=platform.machine(),
        glibc=_glibc(),
        python=python,
        has_libpython=python >= _BUNDLED_LIBPYTHON
        or libpython_dir() is not None
        or ctypes.util.find_library(f"python{_dotted(python)}") is not None,
        base_prefix=sys.base_prefix,
        has_python3=(folder / "python3").exists(),
        python_dir=folder,
        cache_dir=install.cache_dir(),
    )


def check_host() -> None:
    """Refuse a machine on which the wheel's Triton can't run.

    Raises:
        ServingError: the message has the reason and what to do.
    """
    problem = this_host().problem()
    if problem:
        raise ServingError(problem)


def libpython_dir() -> Path | None:
    """Return the folder for the library path of Triton's stub; None if the stub needs none, or there is none."""
    if sys.version_info[:2] >= _BUNDLED_LIBPYTHON:
        return None
    name = f"libpython{_dotted(sys.version_info[:2])}.so.1.0"
    # LIBDIR of a relocated Python is its build location.
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix, "lib")):
        if folder and Path(folder, name).is_file():
            return Path(folder)
    return None


def _glibc() -> tuple[int, ...] | None:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return tuple(map(int, version.split("."))) if name == "glibc" else None
    except (ValueError, OSError):
        return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
