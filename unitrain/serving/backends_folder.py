"""The backends of the wheel's Triton: its Python backend, and ours for ONNX models on top of it."""

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from unitrain import integrity
from unitrain.errors import ServingError
from unitrain.repository import tolerance
from unitrain.serving import install
from unitrain.serving.processes import command_lines

_OWN = Path(__file__).parent / "backends"
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
    target = install.cache_dir() / f"backends-{python}-{key}"
    if target.is_dir():
        with contextlib.suppress(OSError):  # it may be an administrator's
            os.utime(target)  # it is used: nobody sweeps it
        return target
    try:
        work_dir = Path(tempfile.mkdtemp(prefix=".assembling-", dir=install.cache_dir()))
    except OSError as error:
        raise ServingError(f"Triton's backends can't be put into {install.cache_dir()}: {error}") from error
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
