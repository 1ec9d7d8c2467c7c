"""What a model folder may not say: files of a repository are data, and may come from anybody.

Triton runs what some fields of config.pbtxt name, and reads files wherever others point.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unitrain.errors import RepositoryError

OWN_BACKENDS = frozenset({"onnxruntime"})
"""What is served without being allowed by name."""
_PLATFORM_BACKEND = {"onnxruntime_onnx": "onnxruntime"}
"""What Triton takes `platform` for where there is no `backend`; other platforms have their backend's name."""


def check_config(config: Any, allowed_backends: frozenset[str]) -> None:
    """Return where a configuration can neither run code nor leave its folder.

    Args:
        config: Triton's ModelConfig message.
        allowed_backends: those that the person allowed by name, beside `onnxruntime`.

    Raises:
        RepositoryError: it could; the message names the field.
    """
    backend = config.backend or _PLATFORM_BACKEND.get(config.platform, config.platform)
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
        if name != Path(name).name or name in (".", ".."):
            raise RepositoryError(
                f"config.pbtxt has `{where}: {name!r}`, which is not the name of a file in the folder"
            )
    if config.model_operations.op_library_filename:
        raise RepositoryError(
            "config.pbtxt has `model_operations`, which loads a library of code; take it out"
        )
    for key in config.parameters:
        # EXECUTION_ENV_PATH is a Python of its own, and onnxruntime has folders to read from.
        if "path" in key.lower():
            raise RepositoryError(
                f"config.pbtxt has the parameter {key!r}, which points to files; take it out"
            )


def check_links(root: Path, folder: Path, *, beside: Iterable[str] = ()) -> None:
    """Return where no symlink in a model's or a version's folder leads out of the repository.

    Args:
        beside: names in the folder that are not looked into.

    Raises:
        RepositoryError: one does; the message names it.
    """
    inside, passed_over = root.resolve(), set(beside)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise RepositoryError(f"{path} is a link that leads out of the repository; copy the file in")
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
