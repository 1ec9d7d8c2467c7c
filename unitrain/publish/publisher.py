"""Weights in, a version in the repository out, or the reason why not."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from pytorch_lightning import LightningModule
from torch import Tensor

from unitrain.client.served_check import check_served
from unitrain.durable import sha256_of
from unitrain.errors import PublishRefused, RepositoryError, SettingsError
from unitrain.export.attributes import Attributes, load_attributes
from unitrain.export.graph import Template, build_template
from unitrain.export.onnx_graph import OnnxGraph
from unitrain.export.parity import GraphSession, Tolerance
from unitrain.export.process import ExportProcess
from unitrain.manifest import Manifest, Metric, read_manifest
from unitrain.publish import gates
from unitrain.publish.config import check_dynamic_axes, class_names_of, served_config
from unitrain.repository import ConfigChange, ModelConfig, Repository, check_model_name, check_signature
from unitrain.repository.layout import GOLDEN_NAME, MODEL_NAME
from unitrain.repository.verify import Check
from unitrain.settings import Publish

PARITY_ROWS = 16
"""Real samples that onnxruntime and torch are compared on, at most."""


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
    attributes: Attributes = field(default_factory=dict)
    """The module's plain attributes, as they were then."""


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
        check_dynamic_axes(settings, rows)
        template = build_template(
            module,
            rows,
            opset=settings.opset,
            tolerance=tolerance_of(settings),
            dynamic_axes=settings.dynamic_axes,
        )
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
        gates.finite_weights(request.weights)
        written: list[Manifest] = []
        # All else under the model's lock, which fill is called with: what is compared with the newest
        # version is compared with the one that it will follow.
        self.repository.publish(
            self.model,
            self.config,
            lambda folder, version: written.append(self._fill(request, folder, version)),
            self.labels,
        )
        return written[-1]

    def check_served(self, manifest: Manifest) -> Check | None:
        """Whether `publish.server` answers a version's golden samples as published; None where none is named."""
        if self.settings.server is None:
            return None
        return check_served(
            self.repository.version_dir(manifest.model, manifest.version),
            manifest.model,
            manifest.version,
            self.settings.server,
            wait_s=self.settings.server_wait_s,
        )

    def close(self) -> None:
        """End what was started for exporting, if anything was."""
        self._export.close()

    def _fill(self, request: Request, folder: Path, version: int) -> Manifest:
        """Write a version's files, each gate passed; the manifest is the last of them."""
        newest = self._newest()
        load_attributes(self.template.served.module, request.attributes)
        graph = self.template.with_weights(request.weights, self._export)
        record = self._record(request, graph, newest, version)
        try:
            session, figures = self._prove(graph, record, folder)
        except PublishRefused as refused:
            if refused.gate != "parity" or not self.template.swappable:
                raise
            # What was a constant before the first epoch no longer is: an attribute that the training changed.
            graph = self.template.exported_anew(self._export)
            session, figures = self._prove(graph, record, folder)
            self.template = replace(self.template, graph=graph)
        if self.settings.require_improvement:
            gates.improvement(request.metric, self.lineage.data_fingerprint, newest)
        golden = golden_archive(
            session, self.template.sample, self.settings.golden, self.settings.golden_max_bytes
        )
        beside = {path.name: sha256_of(path) for path in folder.iterdir() if path.name != MODEL_NAME}
        if golden is not None:
            (folder / GOLDEN_NAME).write_bytes(golden)
        manifest = replace(
            record,
            sha256=sha256_of(folder / MODEL_NAME),
            files=beside,
            golden_sha256=None if golden is None else sha256_of(folder / GOLDEN_NAME),
            parity=figures,
        )
        manifest.write(folder)
        return manifest

    def _prove(
        self, graph: OnnxGraph, record: Manifest, folder: Path
    ) -> tuple[GraphSession, dict[str, dict[str, float]]]:
        """Write a graph, and let it pass the gates as it lies there; open, and how far it is from torch."""
        path, sample = folder / MODEL_NAME, self.template.sample
        external = graph.nbytes > self.settings.external_data_above_bytes
        graph.write(path, metadata=record.to_metadata(), external=external)
        gates.valid_onnx(path)
        session = gates.loadable(path)
        figures = gates.parity(
            self.template.served,
            session,
            sample,
            batch_sizes=sorted({1, 2, len(next(iter(sample.values())))}),
            tolerance=tolerance_of(self.settings),
        )
        gates.expected_signature(graph.structure, self.template.signature)
        return session, figures

    def _record(self, request: Request, graph: OnnxGraph, newest: Manifest | None, version: int) -> Manifest:
        """The manifest, but for what is only known of the files."""
        then = gates.comparable(request.metric, self.lineage.data_fingerprint, newest)
        return Manifest(
            model=self.model,
            version=version,
            published_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            step=request.step,
            epoch=request.epoch,
            weights=request.kind,
            metric=request.metric,
            previous={"version": newest.version, "value": then} if newest and then is not None else None,
            signature=self.template.signature,
            sha256="",
            tolerance=asdict(tolerance_of(self.settings)),
            opset=self.settings.opset,
            ir_version=graph.structure.ir_version,
            versions=self._versions,
            **vars(self.lineage),
        )

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


def golden_archive(
    session: GraphSession, sample: Mapping[str, np.ndarray], rows: int, max_bytes: int
) -> bytes | None:
    """A golden.npz: a few real samples as `inputs/<name>`, and the graph's answers as `outputs/<name>`.

    Rows are left out from the end until the arrays have at most `max_bytes`; None where not one fits.
    """
    while rows:
        inputs = {name: array[:rows] for name, array in sample.items()}
        outputs = session.run(inputs)
        arrays = {f"inputs/{n}": a for n, a in inputs.items()} | {
            f"outputs/{n}": a for n, a in outputs.items()
        }
        if sum(array.nbytes for array in arrays.values()) <= max_bytes:
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **arrays)
            return buffer.getvalue()
        rows //= 2
    return None
