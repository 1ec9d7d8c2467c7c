"""Verification of a version on the disk: hashes, onnx.checker, and golden samples in onnxruntime."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unitrain.errors import ExportError, RepositoryError
from unitrain.repository import integrity
from unitrain.repository.integrity import Contradiction, Golden, hashes_of, read_checked
from unitrain.repository.layout import GOLDEN_NAME, MODEL_NAME
from unitrain.repository.manifest import read_manifest
from unitrain.repository.onnx_session import run_onnx
from unitrain.repository.tolerance import Tolerance, golden_difference


@dataclass(frozen=True)
class Check:
    """Outcome of a check.

    Attributes:
        name: name of the check.
        passed: True, False, or None if there was nothing to check.
        detail: reason, or the figures.
    """

    name: str
    passed: bool | None
    detail: str


def verify_version(version_dir: Path) -> list[Check]:
    """Run every check of a version's folder."""
    return [check_hashes(version_dir), check_graph(version_dir), check_golden(version_dir)]


def check_hashes(version_dir: Path) -> Check:
    """Check the manifest's digest, and the SHA-256 of each file in it."""
    try:
        checked = read_checked(version_dir, in_memory_bytes=0)
    except Contradiction as error:
        return Check("sha256", passed=False, detail=str(error))
    if checked is None:
        return Check("sha256", passed=None, detail="it has no manifest")
    return Check("sha256", passed=True, detail=", ".join(hashes_of(checked.manifest, version_dir)))


def check_graph(version_dir: Path) -> Check:
    """Check the graph, and the weights beside it, by onnx.checker."""
    import onnx

    try:
        onnx.checker.check_model(str(version_dir / MODEL_NAME))
    except Exception as error:  # noqa: BLE001 - the parser's errors have no common base
        return Check("onnx.checker", passed=False, detail=" ".join(str(error).split())[:300])
    return Check("onnx.checker", passed=True, detail="")


def check_golden(version_dir: Path) -> Check:
    """Check the golden samples' outputs in onnxruntime."""
    try:
        golden = read_golden(version_dir)
        if golden is None:
            return Check("golden", passed=None, detail=f"it has no {GOLDEN_NAME}")
        inputs, outputs = golden
        answers = run_onnx(version_dir / MODEL_NAME, inputs)
    except (ExportError, RepositoryError) as error:
        return Check("golden", passed=False, detail=str(error))
    return compare_golden("golden", outputs, answers, tolerance_of(version_dir), "the file")


def tolerance_of(version_dir: Path) -> Tolerance:
    """Return the tolerance of a version's manifest; the default if it has none that can be read."""
    try:
        return Tolerance.of_manifest(read_manifest(version_dir))
    except (RepositoryError, ValueError):
        return Tolerance()


def compare_golden(
    name: str,
    outputs: dict[str, np.ndarray],
    answers: dict[str, np.ndarray],
    tolerance: Tolerance,
    where: str,
) -> Check:
    """Compare answers with the golden outputs, and return the outcome as a check of that name."""
    found = golden_difference(outputs, answers, tolerance, where)
    worst = max((figures["max_abs"] for figures in found.by_output.values()), default=0.0)
    rows = next((want.shape[0] for want in outputs.values() if want.ndim), 0)
    return Check(name, found.failure is None, found.failure or f"{rows} rows, largest difference {worst:.1e}")


def read_golden(version_dir: Path) -> Golden | None:
    """Read a version's golden inputs and outputs by name; return None if it has none.

    Raises:
        RepositoryError: the file can't be read, or is too large.
    """
    try:
        return integrity.read_golden(version_dir)
    except Contradiction as error:
        raise RepositoryError(str(error)) from error
