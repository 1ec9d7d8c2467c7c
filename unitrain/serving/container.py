"""NVIDIA's Triton container, run by Docker or by Apptainer."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unitrain.errors import ServingError, UsageError
from unitrain.serving.advisories import FLOOR, release_of, text_of

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
