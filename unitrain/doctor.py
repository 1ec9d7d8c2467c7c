"""What this machine and this environment have, what is missing, and what to do about it."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from unitrain.errors import ServingError
from unitrain.serving.triton import host_requirements as host
from unitrain.serving.triton import wheel as install

LITTLE_DISK_BYTES = 2 << 30
"""Runs, checkpoints and the Triton wheel with its log need some."""
LITTLE_SHM_BYTES = 256 << 20
"""Triton and loaders' workers hand tensors over in it; a container has 64 MB unless it is told otherwise."""
START_TIMEOUT_S = 90.0
IMPORT_TIMEOUT_S = 120.0

_LOOK_AT_TORCH = """
import json, time
begun = time.perf_counter()
import torch, pytorch_lightning
cuda = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__, "lightning": pytorch_lightning.__version__, "threads": torch.get_num_threads(),
    "cuda_build": torch.version.cuda, "import_s": round(time.perf_counter() - begun, 2),
    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
}))
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: what.
        status: `ok`, `warn` (something will not work, or not well) or `bad` (training will not).
        text: what was found.
        todo: what to do; empty where nothing is to be done.
    """

    name: str
    status: Literal["ok", "warn", "bad"]
    text: str
    todo: str = ""


def diagnose(only: Sequence[str] = (), *, start_triton: bool = True) -> list[Finding]:
    """All findings, in the order in which they matter.

    Args:
        only: names of what is looked at; none: everything.
        start_triton: really start Triton, which takes some seconds.
    """
    looks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "packages": _packages,
        "torch": _torch,
        "processor": _processor,
        "disk": _disk,
        "shm": _shm,
        "triton": _triton,
    }
    findings = [look() for name, look in looks.items() if name in only or not only]
    if start_triton and (findings[-1].name, findings[-1].status) == ("triton", "ok"):
        findings.append(look_at_start())
    return findings


def _python() -> Finding:
    text = f"{platform.python_version()}, {sys.executable}; {platform.system()} on {platform.machine()}"
    if sys.prefix == sys.base_prefix:
        return Finding(
            "python",
            "warn",
            f"{text}; no virtual environment",
            "make one: python -m venv .venv, or make setup",
        )
    return Finding("python", "ok", text)


def _packages() -> Finding:
    """The packages that unitrain needs, held against what it asks for."""
    install_all = "make setup, or pip install -e ."
    try:
        from packaging.requirements import Requirement

        asked = [Requirement(text) for text in requires("unitrain") or ()]
    except (ImportError, PackageNotFoundError) as error:  # it is run from its sources, or half installed
        return Finding("packages", "bad", f"unitrain is not installed whole: {error}", install_all)
    found, wrong = [], []
    for requirement in asked:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        found.append(f"{requirement.name} {have}")
        if not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{requirement.name} {have} is not {requirement.specifier}")
    if wrong:
        return Finding("packages", "bad", "; ".join(wrong), install_all)
    return Finding("packages", "ok", ", ".join(found))


def _torch() -> Finding:
    """In a process of its own: a broken build can take the process with it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _LOOK_AT_TORCH],
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding("torch", "bad", f"is not imported within {IMPORT_TIMEOUT_S:.0f} s", "look at the disk")
    try:
        seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding("torch", "bad", f"can't be imported: {last}", "make setup, or pip install torch")
    gpus = ", ".join(seen["gpus"])
    text = f"{seen['torch']}, Lightning {seen['lightning']}, imported in {seen['import_s']} s, {seen['threads']} threads; "
    if not gpus and seen["cuda_build"] and shutil.which("nvidia-smi"):
        return Finding(
            "torch", "warn", f"{text}no GPU that it can use", "look at nvidia-smi: driver and build must fit"
        )
    return Finding("torch", "ok", text + (f"GPU: {gpus}" if gpus else "no GPU: it trains on the CPU"))


def _processor() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Finding("processor", "ok", f"{usable} of {os.cpu_count()} cores usable, {_size(memory)} of memory")


def _disk() -> Finding:
    places = {"here": Path.cwd(), "cache": install.cache_dir(), "temporary": Path(tempfile.gettempdir())}
    texts, little, closed = [], [], []
    for name, path in places.items():
        there = next(folder for folder in (path, *path.parents) if folder.exists())
        free = shutil.disk_usage(there).free
        texts.append(f"{name} {path}: {_size(free)} free")
        if free < LITTLE_DISK_BYTES:
            little.append(name)
        if not os.access(there, os.W_OK):
            closed.append(str(there))
    if closed:
        return Finding("disk", "bad", "; ".join(texts), f"make {', '.join(closed)} writable")
    if little:
        return Finding("disk", "warn", "; ".join(texts), f"make room: {', '.join(little)}")
    return Finding("disk", "ok", "; ".join(texts))


def _shm() -> Finding:
    path = Path("/dev/shm")  # noqa: S108 - that is what is looked at
    if not path.is_dir():
        return Finding(
            "shm", "warn", "there is no /dev/shm", "Triton and loaders with workers need it: mount it"
        )
    usage = shutil.disk_usage(path)
    text = f"{path}: {_size(usage.free)} of {_size(usage.total)} free"
    if usage.free < LITTLE_SHM_BYTES:
        return Finding(
            "shm", "warn", text, "give a container more: --shm-size 1g; on a host, remove what is left in it"
        )
    return Finding("shm", "ok", text)


def _triton() -> Finding:
    from unitrain.serving.triton.advisories import REACHABLE_APIS, advisories
    from unitrain.serving.triton.distribution import find_triton, network_problem

    native = shutil.which("tritonserver")
    try:
        if not native:
            host.check_host()
        if not native and not install.is_installed():
            return Finding("triton", "warn", "is not installed: nothing can be served here",
                           "python -m unitrain serve --install")  # fmt: skip
        found = find_triton()
    except ServingError as error:
        return Finding("triton", "warn", str(error), "training and publishing work without; see the sentence")
    known = advisories(found.release, REACHABLE_APIS)
    named = ", ".join(advisory.cve for advisory in known)
    open_to = f"; known vulnerabilities that other users of this machine may reach: {named}" if known else ""
    closed = network_problem(None)
    reach = f"loopback only: {closed}" if closed else "may listen on a network"
    return Finding("triton", "ok", f"{found.program} ({found.way}, because {found.reason}); {reach}{open_to}")


def look_at_start() -> Finding:
    """Start Triton on an empty repository, and stop it."""
    from unitrain.serving import Server

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="unitrain-doctor-") as folder:
        server = Server(f"{folder}/repository", log_file=f"{folder}/triton.log", timeout_s=START_TIMEOUT_S)
        try:
            with server:
                took_s = time.monotonic() - begun
        except ServingError as error:
            reason = str(error).partition("\n")[0].partition(": ")[2]
            return Finding(
                "serving", "warn", f"Triton does not start: {reason}", "python -m unitrain serve shows more"
            )
    return Finding("serving", "ok", f"Triton was ready after {took_s:.1f} s")


def _size(size_bytes: float) -> str:
    gigabytes = size_bytes / (1 << 30)
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{size_bytes / (1 << 20):.0f} MB"
