"""Weights in, a version in the repository out, or the reason why not."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import onnx
from pytorch_lightning import LightningModule
from torch import Tensor

from unitrain.durable import sha256_of
from unitrain.errors import RepositoryError, SettingsError
from unitrain.export.graph import Template, build_template
from unitrain.export.parity import Tolerance, run_onnx
from unitrain.export.process import ExportProcess
from unitrain.export.weights import size_bytes
from unitrain.manifest import Manifest, Metric, read_manifest
from unitrain.publish import gates
from unitrain.publish.config import class_names_of, served_config
from unitrain.repository import ConfigChange, ModelConfig, Repository, check_model_name, check_signature
from unitrain.settings import Publish

PARITY_ROWS = 16
"""Real samples that onnxruntime and torch are compared on, at most."""
MODEL_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"
EXTERNAL_FROM_BYTES = 1024
"""Where weights lie beside a graph, tensors of that many bytes do."""
GOLDEN_FILE = "golden.npz"


@dataclass(frozen=True)
class Lineage:
    """Where the versions of a run come from; part of each one's manifest."""

    run: str
    run_dir: str
    settings_sha256: str | None = None
    sources_sha256: str | None = None
    git_commit: str | None = None
    data_fingerprint: str | None = None


@dataclass(frozen=True)
class Request:
    """Weights to be published: copies, which the training no longer touches."""

    weights: Mapping[str, Tensor]
    kind: str
    """"ema" or "raw"."""
    step: int
    epoch: int
    metric: Metric | None = None


@dataclass
class Publisher:
    """The way of one run's versions into the repository: proven gate by gate, then committed.

    Attributes:
        config: the config.pbtxt that the settings ask for.
        labels: label files by name, for classifiers.
        config_change: what becomes of the config.pbtxt that is there.
    """

    template: Template
    repository: Repository
    model: str
    settings: Publish
    lineage: Lineage
    config: ModelConfig
    labels: dict[str, str]
    config_change: ConfigChange
    _versions: dict[str, str] = field(default_factory=dict)
    _export: ExportProcess = field(default_factory=ExportProcess)

    @classmethod
    def prepare(
        cls,
        module: LightningModule,
        sample: Mapping[str, Tensor],
        *,
        repository: Repository,
        model: str,
        settings: Publish,
        lineage: Lineage,
    ) -> "Publisher":
        """A publisher, once it is proven that the module can be exported and the repository takes it.

        Args:
            module: stays as it is; a copy is exported.
            sample: real inputs by name, [row, ...] each.

        Raises:
            UsageError: the name is wrong, the repository is unwritable, the graph can't be exported, or
                the model's signature differs from that of the versions already there.
        """
        check_model_name(model)
        try:
            repository.check_writable()
        except RepositoryError as error:
            raise SettingsError(f"publish.repository: {error}") from error
        rows = {name: tensor[:PARITY_ROWS] for name, tensor in sample.items()}
        template = build_template(module, rows, opset=settings.opset, tolerance=tolerance_of(settings))
        config, labels = served_config(model, template.signature, settings, class_names_of(module))
        try:
            if repository.config_path(model).is_file():
                check_signature(repository.config_path(model), template.signature)
            change = repository.config_change(model, config, labels)
        except RepositoryError as error:
            raise SettingsError(f"publish.model: {error}") from error
        versions = {
            name: installed(name)
            for name in ("torch", "onnx", "onnxruntime", "pytorch-lightning", "unitrain")
        }
        return cls(template, repository, model, settings, lineage, config, labels, change, versions)

    def publish(self, request: Request) -> Manifest:
        """The manifest of the new version.

        Raises:
            PublishRefused: a gate refused it.
            RepositoryError: the disk refused it, or another process changed the model.
        """
        settings, template = self.settings, self.template
        gates.finite_weights(request.weights)
        model = template.with_weights(request.weights, self._export)
        newest = self._newest()
        manifest = self._record(request, model, newest)
        onnx.helper.set_model_props(model, manifest.to_metadata())
        if size_bytes(request.weights) > settings.external_data_above_bytes:
            prove: Callable[[Path], Proven] = lambda folder: self._prove_file(model, folder)  # noqa: E731
            gates.expected_signature(model, template.signature)
        else:
            proven = self._prove_bytes(model)
            prove = lambda folder: _written(proven, folder)  # noqa: E731
        if settings.require_improvement:
            gates.improvement(request.metric, self.lineage.data_fingerprint, newest)
        written: list[Manifest] = []

        def fill(version_dir: Path, version: int) -> None:
            proof = prove(version_dir)
            if proof.golden is not None:
                (version_dir / GOLDEN_FILE).write_bytes(proof.golden)
            beside = [p for p in version_dir.iterdir() if p.name not in (MODEL_FILE, GOLDEN_FILE)]
            complete = replace(
                manifest,
                version=version,
                sha256=sha256_of(version_dir / MODEL_FILE),
                files={path.name: sha256_of(path) for path in beside},
                golden_sha256=None if proof.golden is None else sha256_of(version_dir / GOLDEN_FILE),
                parity=proof.parity,
            )
            complete.write(version_dir)
            written.append(complete)

        self.repository.publish(self.model, self.config, fill, self.labels)
        return written[-1]

    def close(self) -> None:
        """End what was started for exporting, if anything was."""
        self._export.close()

    def _record(self, request: Request, model: onnx.ModelProto, newest: Manifest | None) -> Manifest:
        """The manifest, but for what is only known of the files."""
        then = gates.comparable(request.metric, self.lineage.data_fingerprint, newest)
        return Manifest(
            model=self.model,
            version=0,
            published_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            step=request.step,
            epoch=request.epoch,
            weights=request.kind,
            metric=request.metric,
            previous={"version": newest.version, "value": then} if newest and then is not None else None,
            signature=self.template.signature,
            sha256="",
            opset=self.settings.opset,
            ir_version=model.ir_version,
            versions=self._versions,
            **vars(self.lineage),
        )

    def _prove_bytes(self, model: onnx.ModelProto) -> "Proven":
        gates.valid_onnx(model)
        data = model.SerializeToString()
        figures = self._parity(data)
        gates.expected_signature(model, self.template.signature)
        return Proven(data, figures, self._golden(data))

    def _prove_file(self, model: onnx.ModelProto, folder: Path) -> "Proven":
        """Write a graph that no single file can hold, and prove what was written; the model's lock is held."""
        path = folder / MODEL_FILE
        onnx.save_model(
            model, path, save_as_external_data=True, location=WEIGHTS_FILE, size_threshold=EXTERNAL_FROM_BYTES
        )
        gates.valid_onnx(path)
        return Proven(None, self._parity(path), self._golden(path))

    def _parity(self, model: bytes | Path) -> dict[str, dict[str, float]]:
        sample = self.template.sample
        return gates.parity(
            self.template.served,
            model,
            sample,
            batch_sizes=sorted({1, 2, len(next(iter(sample.values())))}),
            tolerance=tolerance_of(self.settings),
        )

    def _golden(self, model: bytes | Path) -> bytes | None:
        return _golden(model, self.template.sample, self.settings.golden, self.settings.golden_max_bytes)

    def prune(self) -> None:
        """Remove the versions that the settings no longer keep."""
        self.repository.prune(self.model, self.settings.keep, num_versions=self.settings.num_versions)

    def _newest(self) -> Manifest | None:
        """The newest version's record; None where there is none that can be read: nothing depends on it."""
        versions = self.repository.versions(self.model)
        try:
            return read_manifest(self.repository.version_dir(self.model, versions[-1])) if versions else None
        except RepositoryError:
            return None


def tolerance_of(settings: Publish) -> Tolerance:
    """The settings' tolerances, as the comparison takes them."""
    return Tolerance(
        settings.absolute_tolerance, settings.relative_tolerance, settings.tolerances, settings.integer_share
    )


@dataclass(frozen=True)
class Proven:
    """A graph that passed: its bytes (None: it is written already), its parity, its golden samples."""

    data: bytes | None
    parity: dict[str, dict[str, float]]
    golden: bytes | None


def _written(proven: Proven, folder: Path) -> Proven:
    (folder / MODEL_FILE).write_bytes(proven.data or b"")
    return proven


def _golden(model: bytes | Path, sample: Mapping[str, np.ndarray], rows: int, max_bytes: int) -> bytes | None:
    """A golden.npz: a few real samples as `inputs/<name>`, and the graph's answers as `outputs/<name>`.

    Rows are left out from the end until the arrays have at most `max_bytes`; None where not one fits.
    """
    while rows:
        inputs = {name: array[:rows] for name, array in sample.items()}
        outputs = run_onnx(model, inputs)
        arrays = {f"inputs/{n}": a for n, a in inputs.items()} | {
            f"outputs/{n}": a for n, a in outputs.items()
        }
        if sum(array.nbytes for array in arrays.values()) <= max_bytes:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **arrays)
            return buffer.getvalue()
        rows //= 2
    return None
