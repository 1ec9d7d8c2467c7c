"""Where Triton is on this machine, and all that it needs beside its flags."""

import hashlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from unitrain.errors import ServingError
from unitrain.serving import host, install

_BACKENDS = Path(__file__).parent / "backends"


@dataclass(frozen=True)
class Distribution:
    """A Triton that can be started.

    Attributes:
        program: the `tritonserver` to run.
        backends_dir: its folder of backends; None: its own default.
        environment: variables that it needs, beside this process's.
        native: whether its ONNX Runtime backend is the native one.
    """

    program: Path
    backends_dir: Path | None
    native: bool
    environment: dict[str, str] = field(default_factory=dict)


def find_triton() -> Distribution:
    """The `tritonserver` on PATH, else the one of the installed wheel.

    Raises:
        ServingError: there is none, or the wheel's can't run here.
    """
    native = shutil.which("tritonserver")
    if native:
        return Distribution(
            program=Path(native), backends_dir=None, native=True, environment=dict(os.environ)
        )
    host.check_host()
    if not install.is_installed():
        raise ServingError(
            "no Triton was found, neither `tritonserver` on PATH nor the wheel; "
            "run `python -m unitrain serve --install` once"
        )
    wheel_dir = install.wheel_dir()
    return Distribution(
        program=wheel_dir / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        backends_dir=assemble_backends(wheel_dir),
        native=False,
        environment=_environment(wheel_dir),
    )


def assemble_backends(wheel_dir: Path) -> Path:
    """A folder with the Python backend and ours for ONNX models, made once for what goes into it.

    Raises:
        ServingError: the cache folder can't be written.
    """
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    triton = wheel_dir / "pytriton" / "tritonserver"
    own = (_BACKENDS / "onnxruntime" / "model.py").read_bytes()
    key = hashlib.sha256(own + python.encode() + wheel_dir.name.encode()).hexdigest()[:12]
    target = install.cache_dir() / f"backends-{python}-{key}"
    if target.is_dir():
        return target
    work_dir = Path(tempfile.mkdtemp(prefix=".assembling-", dir=install.cache_dir()))
    try:
        shutil.copytree(triton / "backends" / "python", work_dir / "python")
        stub = "triton_python_backend_stub"
        shutil.copy2(triton / "python_backend_stubs" / python / stub, work_dir / "python" / stub)
        (work_dir / "onnxruntime").mkdir()
        (work_dir / "onnxruntime" / "model.py").write_bytes(own)
        work_dir.chmod(0o755)
        work_dir.rename(target)
    except OSError as error:
        if not target.is_dir():  # else another process was faster
            raise ServingError(f"Triton's backends can't be put into {target}: {error}") from error
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    return target


def _environment(wheel_dir: Path) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    environment.pop("PYTHONHOME", None)
    libraries = [wheel_dir / "nvidia_pytriton.libs", host.libpython_dir(), environment.get("LD_LIBRARY_PATH")]
    environment["LD_LIBRARY_PATH"] = ":".join(str(folder) for folder in libraries if folder)
    environment["PATH"] = f"{host.python_dir()}:{environment.get('PATH', os.defpath)}"
    # numpy's own thread pool would only take memory: onnxruntime does the computing.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment
