"""Limits of the numbers in a config.pbtxt: files of a repository may come from anybody, and must not fill the machine.

Triton starts, allocates or sends as much as these fields say before a version answers anything.
"""

import math
from collections.abc import Iterator
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
