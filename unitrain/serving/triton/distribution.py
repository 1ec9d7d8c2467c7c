"""Where Triton is on this machine, and all that it needs beside its flags."""

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

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"
MODELS_DIR = "/models"
"""The model repository inside."""
CANDIDATES_DIR = "/candidates"
"""The private second one."""
ADMIN_DIR = "/run/unitrain"
"""The folder of the administration socket inside."""
_SHM_SIZE = "1g"
"""Docker's default, 64 MB, is little for tensors that are handed over in it."""


@dataclass(frozen=True)
class Container:
    """A container runtime of this machine and the image that it runs.

    Attributes:
        runtime: which of the two.
        program: its executable.
        image: as Docker names it.
        gpus: whether the machine's GPUs are handed in.
    """

    runtime: Literal["docker", "apptainer"]
    program: Path
    image: str = IMAGE
    gpus: bool = False

    @property
    def listens_on(self) -> str | None:
        """The address inside the container; None where it has the machine's own network."""
        return "0.0.0.0" if self.runtime == "docker" else None  # noqa: S104 - of the container, published on one address

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
        """The command line that runs Triton with `flags` in the container.

        Args:
            repository: the model repository, handed in to be read only.
            host: the machine's address that the ports are published on.
            name: of the container, so that it can be ended by it.
            candidates: private second repository, handed in to be read only.
            admin_dir: folder of this user's alone for the administration socket; None: there is none.
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
        """What ends the container whatever became of its client; empty where it ends by itself."""
        return [str(self.program), "kill", name] if self.runtime == "docker" else []


def find_container(runtime: Literal["docker", "apptainer"], image: str = IMAGE) -> Container:
    """The container runtime on PATH.

    Raises:
        ServingError: it is not there.
        UsageError: the image is older than the security fixes.
    """
    check_image(image)
    program = shutil.which(runtime)
    if program is None:
        raise ServingError(f"--container {runtime}: there is no program `{runtime}` on PATH; install it")
    return Container(runtime, Path(program), image, gpus=shutil.which("nvidia-smi") is not None)


def check_image(image: str) -> None:
    """Return where the image's tag, if it tells a release, tells one with the security fixes.

    Raises:
        UsageError: it tells an older one.
    """
    release = image_release(image)
    if release is not None and release < FLOOR:
        raise UsageError(
            f"serve: --image {image} is older than the security fixes of {text_of(FLOOR)}; choose "
            f"{text_of(FLOOR)} or newer, such as {IMAGE}"
        )


def image_release(image: str) -> tuple[int, int] | None:
    """The (year, month) of NVIDIA's release that an image's tag names; None if it names none."""
    return release_of(image.rpartition(":")[2])


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
