"""Manifest of a version: its lineage, metric, parity and hashes, as JSON beside the model.

The folder's name is the version number. A version without a manifest can be served as well.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unitrain.atomic_files import json_text, write_text
from unitrain.errors import RepositoryError
from unitrain.repository.integrity import DIGEST_KEY, FORMAT, MANIFEST_NAME, digest
from unitrain.signature import DTYPES, Signature
from unitrain.untrusted_json import (
    Check,
    integer,
    list_of,
    mapping_of,
    number,
    object_with,
    optional,
    read_json,
    text,
    truth,
)

FILE_NAME = MANIFEST_NAME


def _dtype(value: Any, where: str) -> None:
    text(value, where)
    if value not in DTYPES:
        raise ValueError(f"{where}: there is no dtype {value}")


def _file_names(value: Any, where: str) -> None:
    mapping_of(text)(value, where)
    for name in value:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ValueError(f"{where}: {name!r} is not the name of a file in the version's folder")


_tensors = list_of(
    object_with({"name": text, "dtype": _dtype, "dims": list_of(integer)}, ("name", "dtype", "dims"))
)
_metric = object_with(
    {"name": text, "value": number, "mode": text, "definition": optional(text)}, ("name", "value", "mode")
)
_tolerance = object_with(
    {
        "absolute": number,
        "relative": number,
        "by_dtype": mapping_of(list_of(number)),
        "integer_share": number,
    }
)
_CHECKS: dict[str, Check] = {
    "model": text,
    "version": integer,
    "published_at": text,
    "run": text,
    "run_dir": text,
    "step": integer,
    "epoch": integer,
    "weights": text,
    "signature": object_with(
        {"inputs": _tensors, "outputs": _tensors, "batched": truth}, ("inputs", "outputs", "batched")
    ),
    "sha256": text,
    "metric": optional(_metric),
    "data_fingerprint": optional(text),
    "settings_sha256": optional(text),
    "sources_sha256": optional(text),
    "git_commit": optional(text),
    "parity": mapping_of(mapping_of(number)),
    "tolerance": optional(_tolerance),
    "golden_sha256": optional(text),
    "opset": optional(integer),
    "ir_version": optional(integer),
    "versions": mapping_of(text),
    "files": _file_names,
    "previous": optional(object_with({"version": integer, "value": number})),
    "comparison": optional(
        object_with(
            {
                "version": integer,
                "same_run": optional(truth),
                "outcome": optional(text),
                "value": optional(number),
                "reason": optional(text),
                "best": optional(truth),
            }
        )
    ),
    "promoted": truth,
    "rolled_back_from": optional(object_with({"version": integer, "newest": integer}, ("version",))),
}
_REQUIRED = ("model", "version", "published_at", "run", "run_dir", "step", "epoch", "weights", "signature",
             "sha256")  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """Value of the monitored metric at publication.

    Attributes:
        name: name of the metric.
        value: value; NaN is possible.
        mode: better direction, "min" or "max".
        definition: import path of the class that computes it; None if that is not known.
    """

    name: str
    value: float
    mode: str
    definition: str | None = None


@dataclass(frozen=True)
class Manifest:
    """Lineage and verification of a version.

    Attributes:
        published_at: UTC, ISO 8601.
        run: `<experiment>/<run folder's name>`.
        weights: "ema" or "raw".
        parity: largest absolute and relative difference of onnxruntime from torch, by output.
        tolerance: tolerance of that comparison, the fields of `repository.tolerance.Tolerance`.
        sha256: hash of model.onnx.
        golden_sha256: hash of golden.npz; None if there is none.
        files: SHA-256 of further files by name: weights beside the graph.
        previous: version before and its metric, if both were measured on the same data.
        comparison: metric compared with that of the version before: `version`, `same_run`, `outcome` (better,
            equal, worse; None if the two can't be compared), `value`, `reason` (that prevents a comparison),
            `best` (of all comparable versions).
        promoted: True if `publish.policy: best` held it back and a user published it afterwards.
        rolled_back_from: version that this one repeats, and the newest version at that time.
        data_fingerprint: fingerprint of the validation data behind the metric; None if there is none.
    """

    model: str
    version: int
    published_at: str
    run: str
    run_dir: str
    step: int
    epoch: int
    weights: str
    signature: Signature
    sha256: str
    metric: Metric | None = None
    data_fingerprint: str | None = None
    settings_sha256: str | None = None
    sources_sha256: str | None = None
    git_commit: str | None = None
    parity: dict[str, dict[str, float]] = field(default_factory=dict)
    tolerance: dict[str, Any] | None = None
    golden_sha256: str | None = None
    opset: int | None = None
    ir_version: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    previous: dict[str, Any] | None = None
    comparison: dict[str, Any] | None = None
    promoted: bool = False
    rolled_back_from: dict[str, int] | None = None

    def to_metadata(self) -> dict[str, str]:
        """Return the lineage as flat text, for the graph's metadata_props.

        The version is omitted, since the folder's name is the version; so is the file's hash, which a file
        can't contain.
        """
        lineage = {
            "model": self.model,
            "run": self.run,
            "step": self.step,
            "epoch": self.epoch,
            "weights": self.weights,
            "metric": f"{self.metric.name}={self.metric.value!r} ({self.metric.mode})"
            if self.metric
            else None,
            "data_fingerprint": self.data_fingerprint,
            "settings_sha256": self.settings_sha256,
            "sources_sha256": self.sources_sha256,
            "git_commit": self.git_commit,
            "published_at": self.published_at,
            **self.versions,
        }
        return {f"unitrain.{key}": str(value) for key, value in lineage.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict that `from_json` reads."""
        return {"format": FORMAT} | asdict(self) | {"signature": self.signature.to_json()}

    @classmethod
    def from_json(cls, data: Any) -> "Manifest":
        """Parse the dict that `to_json` returned; unknown keys are ignored.

        Raises:
            ValueError: a key is missing, or its value has the wrong type.
        """
        object_with(_CHECKS, _REQUIRED)(data, "")
        known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
        known["signature"] = Signature.from_json(data["signature"])
        known["metric"] = _metric_of(data.get("metric"))
        return cls(**known)

    def write(self, version_dir: Path) -> None:
        """Write the manifest with its digest into a version's folder."""
        data = self.to_json()
        data[DIGEST_KEY] = digest(json_text(data))
        write_text(version_dir / FILE_NAME, json_text(data))


def _metric_of(data: dict[str, Any] | None) -> Metric | None:
    if data is None:
        return None
    value = math.nan if data["value"] is None else float(data["value"])
    return Metric(data["name"], value, data["mode"], data.get("definition"))


def read_manifest(version_dir: Path) -> Manifest | None:
    """Read a version's manifest; return None if it is missing.

    Raises:
        RepositoryError: it can't be read.
    """
    path = version_dir / FILE_NAME
    try:
        return Manifest.from_json(read_json(path))
    except (OSError, ValueError) as error:
        if isinstance(error, FileNotFoundError) and not path.is_symlink():
            return None
        reason = getattr(error, "strerror", None) or error
        raise RepositoryError(f"{path} can't be read as a manifest: {reason}") from error
