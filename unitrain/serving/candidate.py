"""Verification of a version before it is loaded: its hashes, and its golden samples asked of it as a candidate.

A native backend loads whatever lies in the folder. Triton therefore loads the version first under a random name, from
a private second repository that holds a link to it; its answers are compared with the golden samples; it is
unloaded; and only then is it loaded under the model's own name. The wheel's backend checks all this by itself.
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
from unitrain.serving.health import golden_requests, is_askable, outputs_of
from unitrain.serving.model_folder import override

_ANSWER_TIMEOUT_S = 600.0
_UNLOADED_WITHIN_S = 10.0
_LOOK_S = 0.01


class Candidates:
    """Private second repository of one Triton.

    Attributes:
        self_verifying: backends that check what they load by themselves.
    """

    def __init__(self, folder: Path, seen_repository: Path | str, self_verifying: frozenset[str]) -> None:
        self._folder = folder
        self._seen_repository = str(seen_repository)
        self.self_verifying = self_verifying

    def verify(
        self, admin: Admin, model: str, config: Any, version: int, version_dir: Path
    ) -> CheckedFiles | None:
        """Return where the version is what its manifest says and answers its golden samples; None: no manifest.

        Raises:
            RepositoryError: it is not, or does not; the message says what was found.
            ServerGone: no server.
        """
        backend = config.backend or (
            "onnxruntime" if config.platform == "onnxruntime_onnx" else config.platform
        )
        if backend in self.self_verifying:
            return None
        failure = None
        try:
            files = read_checked(version_dir, in_memory_bytes=0)
            golden = None if files is None else files.golden()
            if files is not None and golden is not None and is_askable(config):
                allowed = Tolerance.from_json(files.manifest.get("tolerance"))
                answers = self._ask(admin, config, f"{model}/{version}", golden)
                failure = golden_difference(golden[1], answers, allowed, "this server").failure
        except (ServerGone, RepositoryError):
            raise
        except Contradiction as error:
            raise RepositoryError(str(error)) from error
        except Exception as error:  # what lies there may be anybody's, and of any shape
            raise RepositoryError(f"{version_dir} can't be verified: {error}") from error
        if failure is not None:
            raise RepositoryError(
                f"{version_dir}: the golden samples are answered otherwise than published: {failure}"
            )
        return files

    def _ask(self, admin: Admin, config: Any, place: str, golden: Golden) -> dict[str, np.ndarray]:
        """Answers to the golden samples of the version at `place`, loaded under a name that nobody knows."""
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
            answers = [outputs_of(admin.infer(request, _ANSWER_TIMEOUT_S)) for request in requests]
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
        """Have it unloaded, and wait until its memory is free for the version itself."""
        with contextlib.suppress(Refused):  # it was never loaded
            admin.unload(name)
            deadline = time.monotonic() + _UNLOADED_WITHIN_S
            while time.monotonic() < deadline and any(
                row[0] == name and row[2] in ("READY", "UNLOADING", "LOADING") for row in admin.index()
            ):
                time.sleep(_LOOK_S)


def _candidate_config(config: Any, name: str) -> Any:
    """The configuration under another name, without what only costs or lies beside the version."""
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
    """The answers of all requests as one array, a single value a row as the graph gives it."""
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    scalar = whole.size == want.size and whole.shape == (*want.shape, 1)
    return whole.reshape(want.shape) if scalar else whole
