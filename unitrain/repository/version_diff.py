"""Differences of two versions: lineage, settings, metrics and weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unitrain.errors import RepositoryError, RunError
from unitrain.repository.layout import MODEL_NAME
from unitrain.repository.manifest import Manifest, read_manifest
from unitrain.runs import compare_runs
from unitrain.signature import dtype_of_array

_LINEAGE = ("run", "step", "epoch", "weights", "data_fingerprint", "settings_sha256", "sources_sha256",
            "git_commit", "opset", "ir_version")  # fmt: skip


@dataclass(frozen=True)
class WeightDifference:
    """Difference of one tensor in two graphs: the largest absolute one, and its norm relative to the first's."""

    name: str
    shape: tuple[int, ...]
    max_abs: float
    relative: float


@dataclass(frozen=True)
class VersionDifferences:
    """Differences of a first and a second version.

    Attributes:
        lineage: field of the manifest → (first, second), for fields that differ.
        settings: dotted name → (first, second), for settings that differ; None if a run's folder is missing.
        metrics: name → (first, second).
        weights: tensors that differ, the most changed first.
        equal_weights: number of tensors that are equal bit by bit.
        only: names of tensors that one graph lacks, or that have another shape there.
    """

    lineage: dict[str, tuple[Any, Any]]
    settings: dict[str, tuple[Any, Any]] | None
    metrics: dict[str, tuple[float | None, float | None]]
    weights: list[WeightDifference]
    equal_weights: int
    only: list[str]


def compare_versions(first_dir: Path, second_dir: Path) -> VersionDifferences:
    """Compare the folders of two versions.

    Raises:
        RepositoryError: a graph or a manifest can't be read.
    """
    first, second = read_manifest(first_dir), read_manifest(second_dir)
    weights, equal, only = _compare_weights(_initializers(first_dir), _initializers(second_dir))
    return VersionDifferences(
        lineage=_lineage(first, second),
        settings=_settings(first, second),
        metrics=_metrics(first, second),
        weights=weights,
        equal_weights=equal,
        only=only,
    )


def _lineage(first: Manifest | None, second: Manifest | None) -> dict[str, tuple[Any, Any]]:
    pairs = {name: (getattr(first, name, None), getattr(second, name, None)) for name in _LINEAGE}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _settings(first: Manifest | None, second: Manifest | None) -> dict[str, tuple[Any, Any]] | None:
    if first is None or second is None:
        return None
    if first.settings_sha256 and first.settings_sha256 == second.settings_sha256:
        return {}
    folders = [Path(first.run_dir), Path(second.run_dir)]
    try:
        if not all((folder / "settings.yaml").is_file() for folder in folders):
            return None
        return compare_runs(*folders).settings
    except (OSError, ValueError, RunError):  # no folder can have that name, or its settings are malformed
        return None


def _metrics(first: Manifest | None, second: Manifest | None) -> dict[str, tuple[float | None, float | None]]:
    by_version: list[dict[str, float | None]] = []
    for manifest in (first, second):
        values: dict[str, float | None] = {}
        if manifest and manifest.metric:
            values[manifest.metric.name] = manifest.metric.value
        for output, figures in (manifest.parity if manifest else {}).items():
            values[f"parity of {output}"] = figures.get("max_abs")
        by_version.append(values)
    return {
        name: (by_version[0].get(name), by_version[1].get(name))
        for name in {**by_version[0], **by_version[1]}
    }


def _initializers(version_dir: Path) -> dict[str, np.ndarray]:
    import onnx

    path = version_dir / MODEL_NAME
    try:
        graph = onnx.load(path).graph
        return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    except Exception as error:
        raise RepositoryError(
            f"{path} can't be read as an ONNX graph: {' '.join(str(error).split())[:200]}"
        ) from error


def _compare_weights(
    first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
) -> tuple[list[WeightDifference], int, list[str]]:
    differing, equal, only = [], 0, sorted(first.keys() ^ second.keys())
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            only.append(name)
        elif a.tobytes() == b.tobytes():
            equal += 1
        else:
            differing.append(_difference(name, a, b))
    return sorted(differing, key=lambda d: (-d.relative, d.name)), equal, only


def _difference(name: str, a: np.ndarray, b: np.ndarray) -> WeightDifference:
    wide = np.float64 if _is_real(a) else a.dtype
    x, y = np.asarray(a, wide), np.asarray(b, wide)
    off = np.abs(y - x)
    norm = float(np.linalg.norm(x.ravel()))
    relative = float(np.linalg.norm(off.ravel())) / max(norm, 1e-12)
    return WeightDifference(name, a.shape, float(off.max(initial=0)), relative)


def _is_real(array: np.ndarray) -> bool:
    try:
        return dtype_of_array(array.dtype).triton != "BYTES"
    except KeyError:  # bfloat16 and other types that numpy learns from a package
        return array.dtype.kind not in "cO"
