"""What a model folder may not say: files of a repository are data, and may come from anybody.

Triton runs what some fields of config.pbtxt name, and reads files wherever others point.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from unitrain.errors import RepositoryError

MOST_INSTANCES = 128
"""With the wheel each is a process of 30 MB and more."""
_MOST_THREADS = 1024
_MOST_PRIORITIES = 1000
_MOST_SEQUENCES = 1 << 16
_MOST_WARM_UPS = 10_000
_MOST_BYTES = 1 << 30
_LARGEST_ITEM = 8


def check_numbers(config: Any) -> None:
    """Return where no number in a configuration makes Triton take more of the machine than a model can need.

    Args:
        config: Triton's ModelConfig message.

    Raises:
        RepositoryError: one does; the message names the field, its value and the limit.
    """
    for field, value, limit in _numbers(config):
        if value > limit:
            raise RepositoryError(f"config.pbtxt has `{field}: {value}`, more than {limit:,}; lower it")


def _numbers(config: Any) -> Iterator[tuple[str, int, int]]:
    """Each number that costs something: its field, its value, its limit."""
    instances = sum(max(group.count, 1) * max(len(group.gpus), 1) for group in config.instance_group)
    yield "instance_group.count", instances, MOST_INSTANCES
    for name in ("intra_op_thread_count", "inter_op_thread_count"):
        if name in config.parameters:
            text = config.parameters[name].string_value.strip()
            yield name, int(text) if text.isdecimal() and len(text) < 20 else 0, _MOST_THREADS  # noqa: PLR2004
    yield "dynamic_batching.priority_levels", config.dynamic_batching.priority_levels, _MOST_PRIORITIES
    yield "model_warmup.count", sum(max(row.count, 1) for row in config.model_warmup), _MOST_WARM_UPS
    for row in config.model_warmup:
        for tensor in row.inputs.values():
            yield "model_warmup (bytes)", max(row.batch_size, 1) * _bytes(tensor.dims), _MOST_BYTES
    if config.HasField("sequence_batching"):
        sequences = config.sequence_batching
        yield "max_batch_size (of sequences)", config.max_batch_size, _MOST_SEQUENCES
        yield "max_candidate_sequences", sequences.oldest.max_candidate_sequences, _MOST_SEQUENCES
        for state in sequences.state:
            for dims in (state.dims, *(initial.dims for initial in state.initial_state)):
                yield (
                    "sequence_batching.state (bytes)",
                    max(config.max_batch_size, 1) * _bytes(dims),
                    _MOST_BYTES,
                )


def _bytes(dims: Any) -> int:
    return _LARGEST_ITEM * int(math.prod(max(length, 1) for length in dims))


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
