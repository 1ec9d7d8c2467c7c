"""What a model folder may not say: files of a repository are data, and may come from anybody.

Triton runs what some fields of config.pbtxt name, and reads files wherever others point.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unitrain.errors import RepositoryError

OWN_BACKENDS = frozenset({"onnxruntime"})
"""What is served without being allowed by name."""
_PLATFORM_BACKEND = {"onnxruntime_onnx": "onnxruntime"}
"""What Triton takes `platform` for where there is no `backend`; other platforms have their backend's name."""
_ENSEMBLE = "ensemble"
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
"""The Python backend hands names to a shell, unquoted."""
_LIBRARY = re.compile(r".*\.so(\..*)?")
"""Triton looks for a backend's library in the version's and the model's folder before its own."""


def check_config(config: Any, allowed_backends: frozenset[str]) -> None:
    """Return where a configuration can neither run code nor leave its folder.

    Args:
        config: Triton's ModelConfig message.
        allowed_backends: those that the person allowed by name, beside `onnxruntime`.

    Raises:
        RepositoryError: it could; the message names the field.
    """
    backend = config.backend or _PLATFORM_BACKEND.get(config.platform, config.platform)
    if config.HasField("ensemble_scheduling"):
        backend = _ENSEMBLE  # Triton then loads models by itself, whatever they are
    if not backend:
        raise RepositoryError('config.pbtxt has no `backend`; write `backend: "onnxruntime"`')
    if backend not in OWN_BACKENDS | allowed_backends:
        raise RepositoryError(
            f'config.pbtxt has `backend: "{backend}"`, which may run any code; start serve with '
            f"`--allow-backend {backend}` if you trust whoever writes into this repository"
        )
    if backend in OWN_BACKENDS:
        _check_own(config)


def _check_own(config: Any) -> None:
    if config.platform not in ("", *_PLATFORM_BACKEND):
        raise RepositoryError(f'config.pbtxt has `platform: "{config.platform}"`; take it out')
    for where, name in _file_names(config):
        if not _FILE_NAME.fullmatch(name):
            raise RepositoryError(
                f"config.pbtxt has `{where}: {name!r}`, which is not a plain name of a file in the folder "
                "(letters, digits, `_`, `-`, `.`)"
            )
    for field in ("model_operations", "model_repository_agents", "runtime"):
        if field in {descriptor.name for descriptor, _ in config.ListFields()}:
            raise RepositoryError(f"config.pbtxt has `{field}`, which loads a library of code; take it out")
    accelerators = config.optimization.execution_accelerators
    parameters = [list(config.parameters)] + [
        list(accelerator.parameters)
        for accelerator in (
            *accelerators.gpu_execution_accelerator,
            *accelerators.cpu_execution_accelerator,
        )
    ]
    for key in [key for keys in parameters for key in keys]:
        # EXECUTION_ENV_PATH is a Python of its own, and onnxruntime has folders to read from.
        if "path" in key.lower():
            raise RepositoryError(
                f"config.pbtxt has the parameter {key!r}, which points to files; take it out"
            )


def check_files(root: Path, folder: Path, *, beside: Iterable[str] = (), code: bool = False) -> None:
    """Return where nothing in a model's or a version's folder leads out of the repository, or is a library.

    Args:
        beside: names in the folder that are not looked into.
        code: whether the model may have code in its folder.

    Raises:
        RepositoryError: something does, or is; the message names it.
    """
    inside, passed_over = root.resolve(), set(beside)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                raise RepositoryError(f"{path} is a link that leads out of the repository; copy the file in")
            if not code and _LIBRARY.fullmatch(name):
                raise RepositoryError(
                    f"{path} is a library of code, which Triton would load as the backend; take it out"
                )
        folders[:] = [name for name in folders if name not in passed_over]


def _file_names(config: Any) -> list[tuple[str, str]]:
    named = [("default_model_filename", config.default_model_filename)]
    named += [("cc_model_filenames", name) for name in config.cc_model_filenames.values()]
    named += [("label_filename", tensor.label_filename) for tensor in config.output]
    named += [
        ("input_data_file", tensor.input_data_file)
        for warm_up in config.model_warmup
        for tensor in warm_up.inputs.values()
    ]
    return [(field, name) for field, name in named if name]


def runs_code(config: Any) -> bool:
    """Whether the model is served by a backend that was allowed by name: it may have code in its folder."""
    return config.backend not in OWN_BACKENDS and config.platform not in _PLATFORM_BACKEND
