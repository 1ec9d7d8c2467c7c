"""Security checks of a model's configuration and files, which may come from any user who can write to the repository.

Triton runs code that some fields of config.pbtxt name, and reads files that others point to.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unitrain.errors import RepositoryError

TRUSTED_BACKENDS = frozenset({"onnxruntime"})
"""Backends that are served although the user has not allowed them by name."""
MAX_INSTANCES = 128
"""With the wheel each instance is a process of 30 MB or more."""
_MAX_THREADS = 1024
_MAX_PRIORITIES = 1000
_MAX_SEQUENCES = 1 << 16
_MAX_WARM_UPS = 10_000
_MAX_BYTES = 1 << 30
_MAX_ITEM_BYTES = 8
_MAX_DIGITS = 19
_PLATFORM_BACKEND = {"onnxruntime_onnx": "onnxruntime"}
"""Backend that Triton derives from `platform` if `backend` is missing; other platforms have their backend's name."""
_ENSEMBLE = "ensemble"
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
"""Names that are safe in a shell: Triton's Python backend does not quote them."""
_LIBRARY = re.compile(r".*\.so(\..*)?")
"""Triton looks for a backend's library in the version's and the model's folder before its own."""


def runs_code(config: Any) -> bool:
    """Return whether the model has a backend that the user allowed by name; its folder may then contain code."""
    return config.backend not in TRUSTED_BACKENDS and config.platform not in _PLATFORM_BACKEND


def check_config(config: Any, allowed_backends: frozenset[str]) -> None:
    """Refuse a configuration that could run code or read files outside of the model's folder.

    Args:
        config: Triton's ModelConfig message.
        allowed_backends: backends that the user allowed in addition to `onnxruntime`.

    Raises:
        RepositoryError: it could; the message names the field.
    """
    backend = config.backend or _PLATFORM_BACKEND.get(config.platform, config.platform)
    if config.HasField("ensemble_scheduling"):
        backend = _ENSEMBLE  # Triton then loads the models of its steps without any check
    if not backend:
        raise RepositoryError('config.pbtxt has no `backend`; write `backend: "onnxruntime"`')
    if backend not in TRUSTED_BACKENDS | allowed_backends:
        raise RepositoryError(
            f'config.pbtxt has `backend: "{backend}"`, which may run any code; start serve with '
            f"`--allow-backend {backend}` if you trust whoever writes into this repository"
        )
    if backend in TRUSTED_BACKENDS:
        _check_fields(config)


def check_numbers(config: Any) -> None:
    """Refuse numbers in a configuration that would make Triton use more of the machine than a model can need.

    Args:
        config: Triton's ModelConfig message.

    Raises:
        RepositoryError: a number is too large; the message names the field, its value and the limit.
    """
    for field, value, limit in _numbers(config):
        if value > limit:
            raise RepositoryError(f"config.pbtxt has `{field}: {value}`, more than {limit:,}; lower it")


def check_files(root: Path, folder: Path, *, ignored: Iterable[str] = (), code: bool = False) -> None:
    """Refuse links out of the repository and libraries of code in a model's or a version's folder.

    Args:
        root: folder of the repository.
        folder: folder of the model or the version.
        ignored: names of entries that are not searched.
        code: whether the folder may contain code.

    Raises:
        RepositoryError: there is one; the message names it.
    """
    inside, skipped = root.resolve(), set(ignored)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
                raise RepositoryError(f"{path} is a link that leads out of the repository; copy the file in")
            if not code and _LIBRARY.fullmatch(name):
                raise RepositoryError(
                    f"{path} is a library of code, which Triton would load as the backend; remove it"
                )
        folders[:] = [name for name in folders if name not in skipped]


def _check_fields(config: Any) -> None:
    if config.platform not in ("", *_PLATFORM_BACKEND):
        raise RepositoryError(f'config.pbtxt has `platform: "{config.platform}"`; remove it')
    for where, name in _file_names(config):
        if not _FILE_NAME.fullmatch(name):
            raise RepositoryError(
                f"config.pbtxt has `{where}: {name!r}`, which is not a plain name of a file in the folder "
                "(letters, digits, `_`, `-`, `.`)"
            )
    for field in ("model_operations", "model_repository_agents", "runtime"):
        if field in {descriptor.name for descriptor, _ in config.ListFields()}:
            raise RepositoryError(f"config.pbtxt has `{field}`, which loads a library of code; remove it")
    accelerators = config.optimization.execution_accelerators
    parameters = [list(config.parameters)] + [
        list(accelerator.parameters)
        for accelerator in (
            *accelerators.gpu_execution_accelerator,
            *accelerators.cpu_execution_accelerator,
        )
    ]
    for key in [key for keys in parameters for key in keys]:
        # EXECUTION_ENV_PATH names another Python, and onnxruntime has folders to read from.
        if "path" in key.lower():
            raise RepositoryError(f"config.pbtxt has the parameter {key!r}, which points to files; remove it")


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


def _numbers(config: Any) -> Iterator[tuple[str, int, int]]:
    """Yield each number that costs processes, threads or memory: its field, its value, its limit."""
    instances = sum(max(group.count, 1) * max(len(group.gpus), 1) for group in config.instance_group)
    yield "instance_group.count", instances, MAX_INSTANCES
    for name in ("intra_op_thread_count", "inter_op_thread_count"):
        if name in config.parameters:
            text = config.parameters[name].string_value.strip()
            yield name, int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else 0, _MAX_THREADS
    yield "dynamic_batching.priority_levels", config.dynamic_batching.priority_levels, _MAX_PRIORITIES
    yield "model_warmup.count", sum(max(row.count, 1) for row in config.model_warmup), _MAX_WARM_UPS
    for row in config.model_warmup:
        for tensor in row.inputs.values():
            yield "model_warmup (bytes)", max(row.batch_size, 1) * _size_bytes(tensor.dims), _MAX_BYTES
    if config.HasField("sequence_batching"):
        sequences = config.sequence_batching
        yield "max_batch_size (of sequences)", config.max_batch_size, _MAX_SEQUENCES
        yield "max_candidate_sequences", sequences.oldest.max_candidate_sequences, _MAX_SEQUENCES
        for state in sequences.state:
            for dims in (state.dims, *(initial.dims for initial in state.initial_state)):
                size_bytes = max(config.max_batch_size, 1) * _size_bytes(dims)
                yield "sequence_batching.state (bytes)", size_bytes, _MAX_BYTES


def _size_bytes(dims: Any) -> int:
    return _MAX_ITEM_BYTES * int(math.prod(max(length, 1) for length in dims))
