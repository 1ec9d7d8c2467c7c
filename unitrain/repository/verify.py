"""Whether a version on the disk is still what was published: hashes, the checker, the golden samples."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unitrain.durable import sha256_of
from unitrain.errors import ExportError, RepositoryError
from unitrain.manifest import read_manifest
from unitrain.repository.answers import Tolerance, compare, run_onnx
from unitrain.repository.layout import GOLDEN_NAME, MODEL_NAME

Golden = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Check:
    """One check's outcome: passed, failed, or None where there was nothing to check; and why, in words."""

    name: str
    passed: bool | None
    detail: str


def verify_version(version_dir: Path) -> list[Check]:
    """Every check of a version's folder, each whatever the others say."""
    return [check_hashes(version_dir), check_graph(version_dir), check_golden(version_dir)]


def check_hashes(version_dir: Path) -> Check:
    """Each file has the SHA-256 that the manifest gives."""
    try:
        manifest = read_manifest(version_dir)
    except RepositoryError as error:
        return Check("sha256", passed=False, detail=str(error))
    if manifest is None:
        return Check("sha256", passed=None, detail="it has no manifest")
    hashes = {MODEL_NAME: manifest.sha256, **manifest.files}
    if manifest.golden_sha256:
        hashes[GOLDEN_NAME] = manifest.golden_sha256
    for name, wanted in hashes.items():
        try:
            found = sha256_of(version_dir / name)
        except OSError as error:
            return Check("sha256", passed=False, detail=f"{name} can't be read: {error.strerror}")
        if found != wanted:
            return Check(
                "sha256",
                passed=False,
                detail=f"{name} has {found[:12]}…, the manifest says {wanted[:12]}…: it was changed",
            )
    return Check("sha256", passed=True, detail=", ".join(hashes))


def check_graph(version_dir: Path) -> Check:
    """onnx.checker accepts the graph, with what lies beside it."""
    import onnx

    try:
        onnx.checker.check_model(str(version_dir / MODEL_NAME))
    except Exception as error:  # noqa: BLE001 - the parser's errors have no common base
        return Check("onnx.checker", passed=False, detail=" ".join(str(error).split())[:300])
    return Check("onnx.checker", passed=True, detail="")


def check_golden(version_dir: Path) -> Check:
    """In onnxruntime the golden samples have the answers that were published with them."""
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
    """What a version was held against when it was published; the defaults where its manifest can't say."""
    try:
        return Tolerance.of_manifest(read_manifest(version_dir))
    except (RepositoryError, TypeError):
        return Tolerance()


def compare_golden(
    name: str,
    outputs: dict[str, np.ndarray],
    answers: dict[str, np.ndarray],
    tolerance: Tolerance,
    where: str,
) -> Check:
    """How answers of today compare with those that were published."""
    given = {output: answers[output] for output in outputs if output in answers}
    found = compare(outputs, given, tolerance, sides=("the golden samples", where))
    worst = max((figures["max_abs"] for figures in found.by_output.values()), default=0.0)
    rows = len(next(iter(outputs.values()), ()))
    return Check(name, found.failure is None, found.failure or f"{rows} rows, largest difference {worst:.1e}")


def read_golden(version_dir: Path) -> Golden | None:
    """A version's golden inputs and outputs by name; None where it has none.

    Raises:
        RepositoryError: the file is there but can't be read.
    """
    path = version_dir / GOLDEN_NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise RepositoryError(f"{path} can't be read: {' '.join(str(error).split())}") from error
    inputs = {n.removeprefix("inputs/"): a for n, a in arrays.items() if n.startswith("inputs/")}
    outputs = {n.removeprefix("outputs/"): a for n, a in arrays.items() if n.startswith("outputs/")}
    return inputs, outputs
