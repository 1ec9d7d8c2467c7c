"""NVIDIA's Triton container, run by Docker or by Apptainer."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unitrain.errors import ServingError, UsageError

IMAGE = "nvcr.io/nvidia/tritonserver:25.08-py3"
OLDEST_SAFE = (25, 7)
"""The release that mended CVE-2025-23310, 23311, 23319, 23320 and 23334."""
_RELEASE = re.compile(r"(\d\d)\.(\d\d)(?:-|$)")
MODELS_DIR = "/models"
"""The model repository inside."""
CANDIDATES_DIR = "/candidates"
"""The private second one."""
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
    ) -> list[str]:
        """The command line that runs Triton with `flags` in the container.

        Args:
            repository: the model repository, handed in to be read only.
            host: the machine's address that the ports are published on.
            name: of the container, so that it can be ended by it.
            candidates: private second repository, handed in to be read only.
        """
        if self.runtime == "apptainer":
            words = ["exec", "--cleanenv", "--bind", f"{repository}:{MODELS_DIR}:ro"]
            words += ["--bind", f"{candidates}:{CANDIDATES_DIR}:ro"] if candidates else []
            words += ["--nv"] if self.gpus else []
            return [str(self.program), *words, f"docker://{self.image}", "tritonserver", *flags]
        words = ["run", "--rm", f"--name={name}", f"--shm-size={_SHM_SIZE}"]
        words += [f"--user={os.getuid()}:{os.getgid()}", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        words += [f"--volume={repository}:{MODELS_DIR}:ro"]
        words += [f"--volume={candidates}:{CANDIDATES_DIR}:ro"] if candidates else []
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
    release = release_of(image.rpartition(":")[2])
    if release is not None and release < OLDEST_SAFE:
        raise UsageError(
            f"serve: --image {image} is older than the security fixes of 25.07; choose 25.07 or newer, such as {IMAGE}"
        )


def release_of(text: str) -> tuple[int, int] | None:
    """The (year, month) of NVIDIA's release that a tag or a version begins with; None where it does not tell."""
    found = _RELEASE.match(text)
    return (int(found[1]), int(found[2])) if found else None
