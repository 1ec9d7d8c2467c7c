"""Weights in, a version in the repository out, or the reason why not."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from pytorch_lightning import LightningModule
from torch import Tensor

from unitrain.durable import sha256_of
from unitrain.errors import RepositoryError, SettingsError
from unitrain.export.graph import Template, build_template
from unitrain.export.parity import Tolerance, run_onnx
from unitrain.manifest import Manifest, Metric, read_manifest
from unitrain.publish import gates
from unitrain.repository import Repository, check_model_name, check_signature, model_config
from unitrain.settings import Publish

PARITY_ROWS = 16
"""Real samples that onnxruntime and torch are compared on, at most."""
MODEL_FILE = "model.onnx"
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
    """The way of one run's versions into the repository: proven gate by gate, then committed."""

    template: Template
    repository: Repository
    model: str
    settings: Publish
    lineage: Lineage
    _versions: dict[str, str] = field(default_factory=dict)

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
        tolerance = Tolerance(settings.absolute_tolerance, settings.relative_tolerance)
        rows = {name: tensor[:PARITY_ROWS] for name, tensor in sample.items()}
        template = build_template(module, rows, opset=settings.opset, tolerance=tolerance)
        try:
            if repository.config_path(model).is_file():
                check_signature(repository.config_path(model), template.signature)
        except RepositoryError as error:
            raise SettingsError(f"publish.model: {error}") from error
        versions = {
            name: installed(name)
            for name in ("torch", "onnx", "onnxruntime", "pytorch-lightning", "unitrain")
        }
        return cls(template, repository, model, settings, lineage, versions)

    def publish(self, request: Request) -> Manifest:
        """The manifest of the new version.

        Raises:
            PublishRefused: a gate refused it.
            RepositoryError: the disk refused it, or another process changed the model.
        """
        settings, template = self.settings, self.template
        gates.finite_weights(request.weights)
        model = template.with_weights(request.weights)
        gates.valid_onnx(model)
        data = model.SerializeToString()
        figures = gates.parity(
            template.served,
            data,
            template.sample,
            batch_sizes=sorted({1, 2, len(next(iter(template.sample.values())))}),
            tolerance=Tolerance(settings.absolute_tolerance, settings.relative_tolerance),
        )
        gates.expected_signature(model, template.signature)
        if settings.require_improvement:
            gates.improvement(request.metric, self.lineage.data_fingerprint, self._newest())
        golden = _golden(data, template.sample, settings.golden)
        written: list[Manifest] = []

        def fill(version_dir: Path, version: int) -> None:
            (version_dir / MODEL_FILE).write_bytes(data)
            if golden is not None:
                (version_dir / GOLDEN_FILE).write_bytes(golden)
            manifest = Manifest(
                model=self.model,
                version=version,
                published_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                step=request.step,
                epoch=request.epoch,
                weights=request.kind,
                metric=request.metric,
                signature=template.signature,
                sha256=sha256_of(version_dir / MODEL_FILE),
                golden_sha256=None if golden is None else sha256_of(version_dir / GOLDEN_FILE),
                parity=figures,
                opset=settings.opset,
                ir_version=model.ir_version,
                versions=self._versions,
                **vars(self.lineage),
            )
            manifest.write(version_dir)
            written.append(manifest)

        config = model_config(
            self.model,
            template.signature,
            max_batch_size=settings.max_batch_size,
            num_versions=settings.num_versions,
            max_queue_delay_microseconds=settings.max_queue_delay_microseconds,
        )
        self.repository.publish(self.model, config, fill)
        return written[-1]

    def prune(self) -> None:
        """Remove the versions that the settings no longer keep."""
        self.repository.prune(self.model, self.settings.keep, num_versions=self.settings.num_versions)

    def _newest(self) -> Manifest | None:
        versions = self.repository.versions(self.model)
        return read_manifest(self.repository.version_dir(self.model, versions[-1])) if versions else None


def _golden(model: bytes, sample: Mapping[str, np.ndarray], rows: int) -> bytes | None:
    """A golden.npz: a few real samples as `inputs/<name>`, and the graph's answers as `outputs/<name>`."""
    if not rows:
        return None
    inputs = {name: array[:rows] for name, array in sample.items()}
    outputs = run_onnx(model, inputs)
    buffer = io.BytesIO()
    arrays = {f"inputs/{n}": a for n, a in inputs.items()} | {f"outputs/{n}": a for n, a in outputs.items()}
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
