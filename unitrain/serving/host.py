"""What this machine and this Python must have for the wheel's Triton to run."""

import ctypes.util
import os
import platform
import sys
import sysconfig
from pathlib import Path

from unitrain.errors import ServingError

OLDEST_GLIBC = (2, 35)
STUB_VERSIONS = ((3, 11), (3, 12), (3, 13))
"""Pythons that the wheel has a stub for and that unitrain supports."""
_BUNDLED_LIBPYTHON = (3, 13)
_CONTAINER = "NVIDIA's container nvcr.io/nvidia/tritonserver"


def check_host() -> None:
    """Return when the wheel's Triton can run here.

    Raises:
        ServingError: it can't, why, and what to do.
    """
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise ServingError(
            f"the Triton wheel needs Linux on x86_64, this is {system} on {machine}; use {_CONTAINER}"
        )
    glibc = _glibc()
    if glibc is None or glibc < OLDEST_GLIBC:
        found = (
            f"this system has {'.'.join(map(str, glibc))}" if glibc else "this system has another C library"
        )
        raise ServingError(
            f"the Triton wheel needs glibc {'.'.join(map(str, OLDEST_GLIBC))} or newer, {found}; "
            f"use a newer distribution or {_CONTAINER}"
        )
    if sys.version_info[:2] not in STUB_VERSIONS:
        known = ", ".join(f"{major}.{minor}" for major, minor in STUB_VERSIONS)
        raise ServingError(
            f"the Triton wheel runs models with Python {known}, this is {platform.python_version()}; "
            f"use one of these, or {_CONTAINER}"
        )
    libpython_dir()
    python_dir()


def libpython_dir() -> Path | None:
    """The folder that holds this Python's shared library; None where the loader finds it by itself.

    Raises:
        ServingError: this Python was built without one.
    """
    if sys.version_info[:2] >= _BUNDLED_LIBPYTHON:
        return None
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    # LIBDIR of a relocated Python is where it was built, not where it is.
    for folder in (sysconfig.get_config_var("LIBDIR"), Path(sys.base_prefix, "lib")):
        if folder and Path(folder, name).is_file():
            return Path(folder)
    if ctypes.util.find_library(f"python{version}"):
        return None
    raise ServingError(
        f"Triton runs models with {name}, which this Python ({sys.base_prefix}) was built without; use a "
        f"Python built with --enable-shared, or install libpython{version}"
    )


def python_dir() -> Path:
    """The folder whose `python3` is this environment's: Triton's stub finds the environment by it.

    Raises:
        ServingError: there is none beside this interpreter.
    """
    folder = Path(sys.executable).parent
    if not (folder / "python3").exists():
        raise ServingError(
            f"Triton finds the environment by a program `python3`, and {folder} has none; run unitrain from "
            "a virtual environment (python -m venv)"
        )
    return folder


def _glibc() -> tuple[int, ...] | None:
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        return tuple(map(int, version.split("."))) if name == "glibc" else None
    except (ValueError, OSError):
        return None
