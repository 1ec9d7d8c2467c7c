"""Answers as a snapshot for TensorBoard's Embedding Projector, beside the snapshots of the validation."""

from pathlib import Path
from typing import Any

import numpy as np

from unitrain.client.input_validation import Array
from unitrain.client.metadata import ModelInfo
from unitrain.errors import ClientError, DataError
from unitrain.projector import MAX_ROWS, StableSample, write_snapshot
from unitrain.signature import TensorSpec

_CHUNK_ROWS = 1024
"""Samples that are offered to the reservoir at once."""


class ProjectorSink:
    """Write the outputs of at most 100,000 samples to `DIR/served/`, the same samples for the same input.

    Outputs of numbers are points. An output of one integer, bool or text a sample is a label, beside
    `version` and `sample`. Failed samples are skipped.

    Attributes:
        done: always 0: a snapshot can't be resumed.
    """

    def __init__(self, directory: Path, model: ModelInfo, outputs: tuple[TensorSpec, ...]) -> None:
        self.done = 0
        self._directory = directory
        self._model = model
        self._names = [spec.name for spec in outputs]
        self._reservoir = StableSample(MAX_ROWS)
        self._pending: list[tuple[int, dict[str, Array], int]] = []
        self._kept: dict[int, tuple[int, dict[str, Array], int]] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)  # fails now rather than after all samples
        except OSError as error:
            raise DataError(f"{directory}: can't be written: {error.strerror}") from error

    def write(self, index: int, outputs: dict[str, Array], version: int, name: str | None = None) -> None:
        self._pending.append((index, {output: np.array(outputs[output]) for output in self._names}, version))
        if len(self._pending) >= _CHUNK_ROWS:
            self._sample_pending()

    def write_error(self, index: int, error: ClientError, name: str | None = None) -> None:
        """Skip the sample: without an answer it has no point."""

    def close(self) -> None:
        self._sample_pending()
        rows = [self._kept[slot] for slot in self._reservoir.end().tolist()]
        if not rows:
            return
        tensors: dict[str, Array] = {}
        labels: dict[str, list[Any]] = {}
        for name in self._names:
            values = [outputs[name] for _, outputs, _ in rows]
            if values[0].dtype.kind not in "biuf" or (values[0].size == 1 and values[0].dtype.kind != "f"):
                labels[name] = [_label(value) for value in values]
            elif len({value.shape for value in values}) == 1:
                tensors[name] = np.stack(values).reshape(len(rows), -1)
        if not tensors:
            raise DataError(f"--output projector: no output of {self._model.name} is a vector of one size")
        labels |= {"version": [version for *_, version in rows], "sample": [index for index, *_ in rows]}
        step = max(labels["version"])
        try:
            write_snapshot(self._directory / "served", self._model.name, tensors, labels, step=step)
        except OSError as error:
            raise DataError(f"{self._directory}: can't be written: {error.strerror}") from error

    def _sample_pending(self) -> None:
        """Keep those of the pending samples that the reservoir draws."""
        places, slots = self._reservoir.take(len(self._pending))
        for place, slot in zip(places.tolist(), slots.tolist(), strict=True):
            self._kept[slot] = self._pending[place]
        self._pending.clear()


def _label(value: Array) -> str:
    [item] = value.reshape(-1).tolist() if value.size == 1 else [value.tolist()]
    return item.decode(errors="replace") if isinstance(item, bytes) else str(item)
