"""Where Triton is on this machine, and all that it needs beside its flags."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unitrain.errors import ServingError
from unitrain.serving import host, install
from unitrain.serving.advisories import CLIENT_SHM_FLAG, FLOOR, Release, release_of, text_of
from unitrain.serving.backends_folder import assemble_backends
from unitrain.serving.container import IMAGE, Container, find_container, image_release

Runtime = Literal["docker", "apptainer"]
_RELEASE_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"
"""NVIDIA's images say their release in it."""


@dataclass(frozen=True)
class Distribution:
    """A Triton that can be started.

    Attributes:
        program: what is run: the `tritonserver`, or the container's runtime.
        reason: why it was chosen.
        native: whether its ONNX Runtime backend is the native one.
        backends_dir: its folder of backends; None: its own default.
        container: what runs it, where it is in a container.
        environment: the variables that it gets, all of them.
    """

    program: Path
    reason: str
    native: bool
    backends_dir: Path | None = None
    container: Container | None = None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def way(self) -> str:
        """native, wheel, docker or apptainer."""
        return self.container.runtime if self.container else "native" if self.native else "wheel"

    @property
    def release(self) -> Release | None:
        """NVIDIA's release; None where it can't be told."""
        if self.container:
            return image_release(self.container.image)
        return release_of(os.environ.get(_RELEASE_VARIABLE, "")) if self.native else install.WHEEL_RELEASE

    @property
    def needs_shm_flag(self) -> bool:
        """Whether client shared memory must be switched on by a flag, which older releases don't know."""
        return self.release is not None and self.release >= CLIENT_SHM_FLAG

    def __str__(self) -> str:
        if self.container:
            return f"{self.container.image} by {self.program}"
        return str(self.program) if self.native else f"{install.WHEEL} {install.WHEEL_VERSION}"


def find_triton(container: Runtime | None = None, image: str = IMAGE) -> Distribution:
    """The container, where it is asked for; else the `tritonserver` on PATH; else the installed wheel's.

    Raises:
        ServingError: there is none, or it can't run here.
        UsageError: the image is too old.
    """
    if container:
        found = find_container(container, image)
        return Distribution(
            found.program, f"asked for by --container {container}", native=True, container=found
        )
    native = shutil.which("tritonserver")
    if native:
        return Distribution(Path(native), "`tritonserver` is on PATH", native=True)
    host.check_host()
    if not install.is_installed():
        raise ServingError(
            "no Triton was found, neither `tritonserver` on PATH nor the wheel; "
            "run `python -m unitrain serve --install` once"
        )
    return wheel_distribution()


def wheel_distribution() -> Distribution:
    """The installed wheel's Triton.

    Raises:
        ServingError: the cache folder can't be written.
    """
    wheel_dir = install.wheel_dir()
    return Distribution(
        wheel_dir / "pytriton" / "tritonserver" / "bin" / "tritonserver",
        "no `tritonserver` on PATH, and the wheel is in the cache",
        native=False,
        backends_dir=assemble_backends(wheel_dir),
        environment=_environment(wheel_dir),
    )


def network_problem(container: Runtime | None) -> str | None:
    """Why the Triton that would be chosen must not listen beyond loopback; None where it may."""
    if container:
        return None  # its image has been looked at
    floor = text_of(FLOOR)
    if not shutil.which("tritonserver"):
        return f"this Triton is older than the security fixes of {floor}"
    release = release_of(os.environ.get(_RELEASE_VARIABLE, ""))
    if release is None:
        return f"{_RELEASE_VARIABLE} does not tell whether this Triton has the security fixes of {floor}"
    if release < FLOOR:
        return f"this Triton ({text_of(release)}) is older than the security fixes of {floor}"
    return None


def _environment(wheel_dir: Path) -> dict[str, str]:
    environment = dict(os.environ)
    environment.pop("PYTHONPATH", None)
    environment.pop("PYTHONHOME", None)
    libraries = [wheel_dir / "nvidia_pytriton.libs", host.libpython_dir(), environment.get("LD_LIBRARY_PATH")]
    environment["LD_LIBRARY_PATH"] = ":".join(str(folder) for folder in libraries if folder)
    environment["PATH"] = f"{host.this_host().python_dir}:{environment.get('PATH', os.defpath)}"
    # numpy's own thread pool would only take memory: onnxruntime does the computing.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment
