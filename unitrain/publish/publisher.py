"""Publication of one run's versions: export the weights, pass the gates, commit to the repository."""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from unitrain.atomic_files import sha256_of
from unitrain.client.golden import check_served
from unitrain.errors import PublishRefused, RepositoryError, SettingsError
from unitrain.onnx_export.export_process import ExportProcess
from unitrain.onnx_export.graph_and_tensors import OnnxGraph
from unitrain.onnx_export.graph_template import Template, build_template
from unitrain.onnx_export.module_weights import weights_of
from unitrain.onnx_export.state_outside_weights import ModuleState
from unitrain.onnx_export.undisturbed_forward import live_answers
from unitrain.publish import gates
from unitrain.publish.hold_back import hold_back, is_held_back
from unitrain.publish.triton_config import check_dynamic_axes, class_names_of, served_config
from unitrain.repository import ConfigChange, ModelConfig, Repository, check_model_name, check_signature
from unitrain.repository.commit import StagedVersion
from unitrain.repository.integrity import MOST_GOLDEN_BYTES
from unitrain.repository.layout import GOLDEN_NAME, MODEL_NAME
from unitrain.repository.manifest import Manifest, Metric
from unitrain.repository.onnx_session import GraphSession, Tolerance
from unitrain.repository.ranking import Comparison, Measured, compare_with_newest
from unitrain.repository.verify import Check
from unitrain.settings import Publish

PARITY_ROWS = 16
"""Maximum number of real samples on which onnxruntime and torch are compared."""


@dataclass(frozen=True)
class Lineage:
    """Origin of a run's versions; part of each manifest."""

    run: str
    run_dir: str
    settings_sha256: str | None = None
    sources_sha256: str | None = None
    git_commit: str | None = None


@dataclass(frozen=True)
class Request:
    """Weights to publish: copies, which the training no longer changes.

    Attributes:
        weights: tensors by name, on the CPU.
        kind: "ema" or "raw".
        step: optimizer step.
        epoch: epoch, counted from 0.
        metric: monitored metric; None if it was not measured.
        state: the module's state outside its weights; None for the state when publishing was prepared.
        reference: the live module's outputs for the first rows of the sample; None if there are none.
        failure: error of capturing the live module; such a request is refused.
        data_fingerprint: fingerprint of the validation data behind the metric.
        no_fingerprint: reason for a missing fingerprint.
    """

    weights: Mapping[str, Tensor]
    kind: str
    step: int
    epoch: int
    metric: Metric | None = None
    state: ModuleState | None = None
    reference: Mapping[str, np.ndarray] | None = None
    failure: str | None = None
    data_fingerprint: str | None = None
    no_fingerprint: str | None = None


@dataclass
class Publisher:
    """Publisher of one run's versions.

    Attributes:
        template: exported graph that takes other weights.
        repository: target of the versions.
        model: name of the model.
        settings: the section `publish`.
        lineage: origin of the run.
        config: configuration for config.pbtxt by the settings.
        labels: label files' text by name, for classifiers.
        config_change: effect on the existing config.pbtxt.
    """

    template: Template
    repository: Repository
    model: str
    settings: Publish
    lineage: Lineage
    config: ModelConfig
    labels: dict[str, str]
    config_change: ConfigChange
    _state: ModuleState
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
        """Return a publisher, after checking that the module can be exported and the repository is writable.

        Args:
            module: live module; it stays unchanged, and a copy is exported.
            sample: real inputs by name, [row, ...] each.
            repository: target of the versions.
            model: name of the model.
            settings: the section `publish`.
            lineage: origin of the run.

        Raises:
            UsageError: the name is invalid, the repository is not writable, the graph can't be exported, or
                the signature differs from that of the published versions.
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
            opset=settings.onnx.opset,
            tolerance=tolerance_of(settings),
            max_rows=settings.model_config.max_batch_size,
            dynamic_axes=settings.onnx.dynamic_axes,
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
        return cls(
            template, repository, model, settings, lineage, config, labels, change, template.state, versions
        )

    def capture(
        self, module: LightningModule, *, kind: str, step: int, epoch: int, metric: Metric | None = None
    ) -> Request:
        """Copy what a version needs from a live module, on the training thread; the module stays unchanged.

        The cost is one copy of the weights and one forward of at most `LIVE_ROWS` rows. The module itself is
        copied only if state outside the weights changed since the last call and forward reads it.

        Args:
            module: live module with the weights to serve.
            kind: "ema" or "raw".
            step: optimizer step.
            epoch: epoch, counted from 0.
            metric: monitored metric; None if it was not measured.
        """
        weights = weights_of(module)
        request = Request(weights, kind, step, epoch, metric)
        try:
            reference = live_answers(module, self.template.run, weights)
            if not self._state.holds(module):
                with isolate_rng():
                    self._state = self.template.state_of(module)
        except Exception as error:  # noqa: BLE001 - a user's forward may raise anything, and the training continues
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            return replace(request, failure=failure)
        return replace(request, state=self._state, reference=reference)

    def publish(self, request: Request) -> Manifest:
        """Publish a request's weights, and return the new version's manifest.

        Raises:
            PublishRefused: a gate refused the version.
            RepositoryError: the disk refused it, or another process changed the model.
        """
        gates.finite_weights(request.weights)
        if request.failure is not None:
            raise PublishRefused(
                "parity",
                f"forward fails on real rows at step {request.step}, in evaluation mode: {request.failure}",
            )
        # All else happens under the model's lock: the version is compared with the one that it follows.
        with self.repository.new_version(self.model, self.config, self.labels) as staged:
            return self._write(request, staged)

    def check_served(self, manifest: Manifest) -> Check | None:
        """Compare the outputs of `publish.server.url` with a version's golden samples; None if no server is set."""
        if self.settings.server.url is None:
            return None
        return check_served(
            self.repository.version_dir(manifest.model, manifest.version),
            manifest.model,
            manifest.version,
            self.settings.server.url,
            wait_s=self.settings.server.timeout_s,
        )

    def prune(self) -> None:
        """Remove the versions that the settings no longer keep."""
        self.repository.prune(
            self.model, self.settings.keep, num_versions=self.settings.model_config.num_versions
        )

    def close(self) -> None:
        """Stop the export process, if there is one."""
        self._export.close()

    def _write(self, request: Request, staged: StagedVersion) -> Manifest:
        """Export a version, let it pass the gates, and write its files, the manifest last."""
        folder = staged.path
        comparison = compare_with_newest(
            self.repository,
            self.model,
            Measured(request.metric, request.data_fingerprint, request.no_fingerprint),
        )
        graph = self._graph(request)
        record = self._record(request, graph, comparison, staged.number)
        try:
            session, figures = self._prove(graph, record, folder, request.reference)
        except PublishRefused as refused:
            if refused.gate != "parity" or not self.template.swappable:
                raise
            # A former constant has changed, which no walk over the module's attributes has found.
            graph = self.template.exported_again()
            session, figures = self._prove(graph, record, folder, request.reference)
            self.template = replace(self.template, graph=graph)
        golden = golden_archive(
            session, self.template.sample, self.settings.golden.samples, self.settings.golden.max_bytes
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
        if self.settings.policy == "best" and comparison is not None and is_held_back(manifest, comparison):
            raise hold_back(folder, manifest, comparison, self.repository)
        return manifest

    def _graph(self, request: Request) -> OnnxGraph:
        """Return the graph with a request's weights and state."""
        state = request.state
        if state is not None and state is not self.template.state:
            self.template = self.template.of_state(state, request.weights, self._export)
        return self.template.with_weights(request.weights, self._export)

    def _prove(
        self, graph: OnnxGraph, record: Manifest, folder: Path, reference: Mapping[str, np.ndarray] | None
    ) -> tuple[GraphSession, dict[str, dict[str, float]]]:
        """Write a graph, and let the file pass the gates; return its session and the parity figures."""
        path, sample = folder / MODEL_NAME, self.template.sample
        external = graph.nbytes > self.settings.onnx.external_data_above_bytes
        graph.write(path, metadata=record.to_metadata(), external=external)
        gates.valid_onnx(path)
        session = gates.loadable(path)
        figures = gates.parity(
            self.template.served,
            session,
            sample,
            tolerance=tolerance_of(self.settings),
            batched=self.template.signature.batched,
            max_rows=self.settings.model_config.max_batch_size,
        )
        if reference is not None:
            gates.live_parity(session, sample, reference, tolerance=tolerance_of(self.settings))
        gates.expected_signature(graph.structure, self.template.signature)
        return session, figures

    def _record(
        self, request: Request, graph: OnnxGraph, before: Comparison | None, version: int
    ) -> Manifest:
        """Return the manifest without the files' hashes and the parity figures."""
        return Manifest(
            model=self.model,
            version=version,
            published_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            step=request.step,
            epoch=request.epoch,
            weights=request.kind,
            metric=request.metric,
            data_fingerprint=request.data_fingerprint,
            previous={"version": before.version, "value": before.value}
            if before and before.outcome
            else None,
            comparison=before.to_json(self.lineage.run) if before else None,
            signature=self.template.signature,
            sha256="",
            tolerance=asdict(tolerance_of(self.settings)),
            opset=self.settings.onnx.opset,
            ir_version=graph.structure.ir_version,
            versions=self._versions,
            **vars(self.lineage),
        )


def tolerance_of(settings: Publish) -> Tolerance:
    """Return the settings' tolerances."""
    return Tolerance(**vars(settings.tolerance))


def golden_archive(
    session: GraphSession, sample: Mapping[str, np.ndarray], rows: int, max_bytes: int
) -> bytes | None:
    """Return a golden.npz: real samples as `inputs/<name>`, and the graph's outputs as `outputs/<name>`.

    The number of rows is halved until the arrays have at most `max_bytes`; None if no row fits.

    Args:
        session: the exported graph.
        sample: real inputs by name, [row, ...] each.
        rows: wanted number of rows.
        max_bytes: limit for all arrays together, uncompressed.
    """
    max_bytes = min(
        max_bytes, MOST_GOLDEN_BYTES // 2
    )  # the reader's limit counts the arrays' headers as well
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
