"""Tritons that can be started here: `tritonserver` on PATH, the wheel in the cache, or a container."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unitrain.errors import ServingError, UsageError
from unitrain.serving.triton import host_requirements as host
from unitrain.serving.triton import wheel as install
from unitrain.serving.triton.advisories import CLIENT_SHM_FLAG, FLOOR, Release, release_of, text_of
from unitrain.serving.triton.wheel import assemble_backends

Runtime = Literal["docker", "apptainer"]
"""Container runtimes."""
IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"
MODELS_DIR = "/models"
"""Model repository in the container."""
CANDIDATES_DIR = "/candidates"
"""Private second repository in the container."""
ADMIN_DIR = "/run/unitrain"
"""Folder of the administration socket in the container."""
_SHM_SIZE = "1g"
"""Size of a container's shared memory; Docker's default, 64 MB, is small for tensors."""
_RELEASE_VARIABLE = "NVIDIA_TRITON_SERVER_VERSION"
"""Environment variable with the release in NVIDIA's images."""


@dataclass(frozen=True)
class Container:
    """Container runtime of this machine and the image that it runs.

    Attributes:
        runtime: name of the runtime.
        program: path of its executable.
        image: name of the image.
        gpus: True if the container gets the machine's GPUs.
    """

    runtime: Runtime
    program: Path
    image: str = IMAGE
    gpus: bool = False

    @property
    def listens_on(self) -> str | None:
        """Address inside the container; None if it has the machine's own network."""
        return "0.0.0.0" if self.runtime == "docker" else None  # noqa: S104 - inside the container; the host publishes it on one address

    def command(
        self,
        flags: list[str],
        *,
        repository: Path,
        host: str,
        ports: list[int],
        name: str,
        candidates: Path | None = None,
        admin_dir: Path | None = None,
    ) -> list[str]:
        """Return the command line that runs Triton with `flags` in the container.

        Args:
            flags: flags for tritonserver.
            repository: path of the model repository, mounted read-only.
            host: address of the machine on which the ports are published.
            ports: port numbers.
            name: name of the container, which `end_command` needs.
            candidates: path of the private second repository, mounted read-only; None: there is none.
            admin_dir: private folder for the administration socket; None: there is none.
        """
        if self.runtime == "apptainer":
            words = ["exec", "--cleanenv", "--bind", f"{repository}:{MODELS_DIR}:ro"]
            words += ["--bind", f"{candidates}:{CANDIDATES_DIR}:ro"] if candidates else []
            words += ["--bind", f"{admin_dir}:{ADMIN_DIR}"] if admin_dir else []
            words += ["--nv"] if self.gpus else []
            return [str(self.program), *words, f"docker://{self.image}", "tritonserver", *flags]
        words = ["run", "--rm", f"--name={name}", f"--shm-size={_SHM_SIZE}"]
        words += [f"--user={os.getuid()}:{os.getgid()}", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        words += [f"--volume={repository}:{MODELS_DIR}:ro"]
        words += [f"--volume={candidates}:{CANDIDATES_DIR}:ro"] if candidates else []
        words += [f"--volume={admin_dir}:{ADMIN_DIR}"] if admin_dir else []
        words += [f"--publish={host}:{port}:{port}" for port in ports]
        words += ["--gpus=all"] if self.gpus else []
        return [str(self.program), *words, self.image, "tritonserver", *flags]

    def end_command(self, name: str) -> list[str]:
        """Return the command that ends the container without its client; empty if it ends with its client."""
        return [str(self.program), "kill", name] if self.runtime == "docker" else []


def find_container(runtime: Runtime, image: str = IMAGE) -> Container:
    """Return the container runtime on PATH.

    Raises:
        ServingError: it is not on PATH.
        UsageError: the image is older than the security fixes.
    """
    check_image(image)
    program = shutil.which(runtime)
    if program is None:
        raise ServingError(f"--container {runtime}: there is no program `{runtime}` on PATH; install it")
    return Container(runtime, Path(program), image, gpus=shutil.which("nvidia-smi") is not None)


def check_image(image: str) -> None:
    """Refuse an image whose tag names a release without the security fixes.

    Raises:
        UsageError: its tag names an older release.
    """
    release = image_release(image)
    if release is not None and release < FLOOR:
        raise UsageError(
            f"serve: --image {image} is older than the security fixes of {text_of(FLOOR)}; choose "
            f"{text_of(FLOOR)} or newer, such as {IMAGE}"
        )


def image_release(image: str) -> tuple[int, int] | None:
    """Return the (year, month) of NVIDIA's release in an image's tag; None if there is none."""
    return release_of(image.rpartition(":")[2])


@dataclass(frozen=True)
class Distribution:
    """Triton that can be started.

    Attributes:
        program: executable: `tritonserver`, or the container runtime.
        reason: reason for the choice.
        native: True if its ONNX Runtime backend is NVIDIA's.
        backends_dir: folder of its backends; None: Triton's default.
        container: container that runs it; None: it runs without one.
        environment: all environment variables of the process.
    """

    program: Path
    reason: str
    native: bool
    backends_dir: Path | None = None
    container: Container | None = None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def way(self) -> str:
        """Way of serving: native, wheel, docker or apptainer."""
        return self.container.runtime if self.container else "native" if self.native else "wheel"

    @property
    def release(self) -> Release | None:
        """NVIDIA's release; None if it is unknown."""
        if self.container:
            return image_release(self.container.image)
        return release_of(os.environ.get(_RELEASE_VARIABLE, "")) if self.native else install.WHEEL_RELEASE

    @property
    def needs_shm_flag(self) -> bool:
        """Return True if client shared memory needs a flag, which older releases don't know."""
        return self.release is not None and self.release >= CLIENT_SHM_FLAG

    def __str__(self) -> str:
        if self.container:
            return f"{self.container.image} by {self.program}"
        return str(self.program) if self.native else f"{install.WHEEL} {install.WHEEL_VERSION}"


def find_triton(container: Runtime | None = None, image: str = IMAGE) -> Distribution:
    """Find a Triton: the container if one is named, else `tritonserver` on PATH, else the installed wheel.

    Args:
        container: container runtime; None: no container.
        image: name of the image.

    Raises:
        ServingError: there is none, or it can't run here.
        UsageError: the image is too old.
    """
    if container:
        found = find_container(container, image)
        return Distribution(found.program, f"--container {container} was given", native=True, container=found)
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
    """Return the installed wheel's Triton.

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
    """Return why `find_triton` finds a Triton that must listen on loopback only; None if it may listen on a network."""
    if container:
        return None  # its image has been checked
    floor = text_of(FLOOR)
    if not shutil.which("tritonserver"):
        return f"this Triton is older than the security fixes of {floor}"
    release = release_of(os.environ.get(_RELEASE_VARIABLE, ""))
    if release is None:
        return f"{_RELEASE_VARIABLE} does not show that this Triton has the security fixes of {floor}"
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
