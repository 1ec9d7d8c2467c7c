"""Verification of a version before it is loaded: its hashes, and its answers to its golden samples.

A native backend loads whatever the folder contains. Triton therefore loads the version first under a random name,
from a private second repository that has a link to it. Its answers are compared with the golden samples, and it is
unloaded. Only then is it loaded under the model's own name. The wheel's backend checks all this by itself.
"""

import contextlib
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from unitrain.errors import RepositoryError
from unitrain.repository import write_config_text
from unitrain.repository.integrity import CheckedFiles, Contradiction, Golden, read_checked
from unitrain.repository.layout import CANDIDATE_PREFIX, CONFIG_NAME
from unitrain.repository.tolerance import Tolerance, golden_difference
from unitrain.serving.admin_client import Admin, Refused, ServerGone
from unitrain.serving.sample_requests import golden_requests, outputs_of, takes_single_requests
from unitrain.serving.servable_versions import override

_REQUEST_TIMEOUT_S = 600.0
_UNLOAD_TIMEOUT_S = 10.0
_POLL_INTERVAL_S = 0.01


class Candidates:
    """Private second repository of one Triton.

    Args:
        folder: folder of the second repository.
        seen_repository: path of the model repository as Triton sees it.
        self_verifying: backends that verify versions by themselves.
    """

    def __init__(self, folder: Path, seen_repository: Path | str, self_verifying: frozenset[str]) -> None:
        self._folder = folder
        self._seen_repository = str(seen_repository)
        self._self_verifying = self_verifying

    def verify(
        self, admin: Admin, model: str, config: Any, version: int, version_dir: Path
    ) -> CheckedFiles | None:
        """Verify a version; return its checked files, or None if it has no manifest or its backend verifies it.

        Raises:
            RepositoryError: it contradicts its manifest or its golden samples; the message names the difference.
            ServerGone: there is no server.
        """
        backend = config.backend or (
            "onnxruntime" if config.platform == "onnxruntime_onnx" else config.platform
        )
        if backend in self._self_verifying:
            return None
        failure = None
        try:
            files = read_checked(version_dir, in_memory_bytes=0)
            golden = None if files is None else files.golden()
            if files is not None and golden is not None and takes_single_requests(config):
                allowed = Tolerance.from_json(files.manifest.get("tolerance"))
                answers = self._answers(admin, config, f"{model}/{version}", golden)
                failure = golden_difference(golden[1], answers, allowed, "this server").failure
        except (ServerGone, RepositoryError):
            raise
        except Contradiction as error:
            raise RepositoryError(str(error)) from error
        except Exception as error:  # the files may be another user's, and of any shape
            raise RepositoryError(f"{version_dir} can't be verified: {error}") from error
        if failure is not None:
            raise RepositoryError(
                f"{version_dir}: the golden samples give other answers than when they were published: {failure}"
            )
        return files

    def _answers(self, admin: Admin, config: Any, place: str, golden: Golden) -> dict[str, np.ndarray]:
        """Return the answers to the golden samples of a version, loaded under a random name.

        Args:
            admin: connection to the server.
            config: configuration of the model.
            place: path of the version in the repository, as MODEL/VERSION.
            golden: golden inputs and outputs.
        """
        inputs, outputs = golden
        model, _, version = place.partition("/")
        name = f"{CANDIDATE_PREFIX}{secrets.token_hex(8)}"
        folder = self._folder / name
        candidate = _candidate_config(config, name)
        try:
            try:
                folder.mkdir(mode=0o700)
                (folder / CONFIG_NAME).write_text(write_config_text(candidate))
                (folder / version).symlink_to(f"{self._seen_repository}/{place}")
            except OSError as error:
                raise RepositoryError(f"{folder} can't be made: {error.strerror}") from error
            admin.load(name, override(candidate, [int(version)], 0))
            requests = golden_requests(candidate, int(version), inputs)
            answers = [outputs_of(admin.infer(request, _REQUEST_TIMEOUT_S)) for request in requests]
            return {
                output: _joined([answer[output] for answer in answers], want)
                for output, want in outputs.items()
            }
        except KeyError as error:
            raise Contradiction(f"the golden samples do not fit config.pbtxt: {error} is missing") from error
        except Refused as error:
            raise Contradiction(str(error).replace(name, model)) from error
        finally:
            self._unload(admin, name)
            shutil.rmtree(folder, ignore_errors=True)

    def _unload(self, admin: Admin, name: str) -> None:
        """Unload it, and wait until its memory is free for the version itself."""
        with contextlib.suppress(Refused):  # it was never loaded
            admin.unload(name)
            deadline = time.monotonic() + _UNLOAD_TIMEOUT_S
            while time.monotonic() < deadline and any(
                row[0] == name and row[2] in ("READY", "UNLOADING", "LOADING") for row in admin.index()
            ):
                time.sleep(_POLL_INTERVAL_S)


def _candidate_config(config: Any, name: str) -> Any:
    """Return the configuration under another name, without warm-up, labels and further instances."""
    candidate = type(config)()
    candidate.CopyFrom(config)
    candidate.name = name
    candidate.ClearField("model_warmup")
    for tensor in candidate.output:
        tensor.ClearField("label_filename")
    for group in candidate.instance_group:
        group.count = min(group.count, 1)
    return candidate


def _joined(parts: list[np.ndarray], want: np.ndarray) -> np.ndarray:
    """Concatenate the answers of all requests; [rows, 1] becomes [rows] if the golden output is [rows]."""
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    scalar = joined.size == want.size and joined.shape == (*want.shape, 1)
    return joined.reshape(want.shape) if scalar else joined
