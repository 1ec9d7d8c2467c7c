"""Weights in, a version in the repository out, or the reason why not."""

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
from unitrain.onnx_export.graph_template import Template, build_template
from unitrain.onnx_export.live_answers import live_answers
from unitrain.onnx_export.module_state import ModuleState
from unitrain.onnx_export.onnx_graph import OnnxGraph
from unitrain.onnx_export.weights import weights_of
from unitrain.publish import gates
from unitrain.publish.policy import hold_back, is_held_back
from unitrain.publish.triton_config import check_dynamic_axes, class_names_of, served_config
from unitrain.repository import ConfigChange, ModelConfig, Repository, check_model_name, check_signature
from unitrain.repository.integrity import MOST_GOLDEN_BYTES
from unitrain.repository.layout import GOLDEN_NAME, MODEL_NAME
from unitrain.repository.manifest import Manifest, Metric
from unitrain.repository.onnx_session import GraphSession, Tolerance
from unitrain.repository.ranking import Comparison, Measured, compare_with_newest
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


@dataclass(frozen=True)
class Request:
    """Weights to be published: copies, which the training no longer touches."""

    weights: Mapping[str, Tensor]
    kind: str
    """"ema" or "raw"."""
    step: int
    epoch: int
    metric: Metric | None = None
    state: ModuleState | None = None
    """The module's state outside its weights; None: as it was when publishing was prepared."""
    reference: Mapping[str, np.ndarray] | None = None
    """The live module's own answers to the first rows of the sample; None: none were taken."""
    failure: str | None = None
    """Reason why the live module could not be captured; such a request is refused."""
    data_fingerprint: str | None = None
    """Of the validation data that the metric was measured on."""
    no_fingerprint: str | None = None
    """The cause of a missing fingerprint, in words."""


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
        """Copy what a version needs of a live module; on the thread that trains it, which it leaves as it was.

        The cost is one copy of the weights and one forward of at most `LIVE_ROWS` rows. Where state outside
        the weights has changed since the last call, and forward reads it, the module is copied, too.

        Args:
            module: has the weights that are to be served.
            kind: "ema" or "raw".
        """
        weights = weights_of(module)
        request = Request(weights, kind, step, epoch, metric)
        try:
            reference = live_answers(module, self.template.run, weights)
            if not self._state.holds(module):
                with isolate_rng():
                    self._state = self.template.state_of(module)
        except Exception as error:  # noqa: BLE001 - whatever a user's forward raises: the training goes on
            failure = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            return replace(request, failure=failure)
        return replace(request, state=self._state, reference=reference)

    def publish(self, request: Request) -> Manifest:
        """The manifest of the new version.

        Raises:
            PublishRefused: a gate refused it.
            RepositoryError: the disk refused it, or another process changed the model.
        """
        gates.finite_weights(request.weights)
        if request.failure is not None:
            raise PublishRefused(
                "parity",
                f"forward fails on real rows at step {request.step}, in evaluation mode: {request.failure}",
            )
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
        """Whether `publish.server.url` answers a version's golden samples as published; None where none is named."""
        if self.settings.server.url is None:
            return None
        return check_served(
            self.repository.version_dir(manifest.model, manifest.version),
            manifest.model,
            manifest.version,
            self.settings.server.url,
            wait_s=self.settings.server.timeout_s,
        )

    def close(self) -> None:
        """End what was started for exporting, if anything was."""
        self._export.close()

    def _fill(self, request: Request, folder: Path, version: int) -> Manifest:
        """Write a version's files, each gate passed; the manifest is the last of them."""
        comparison = compare_with_newest(
            self.repository,
            self.model,
            Measured(request.metric, request.data_fingerprint, request.no_fingerprint),
        )
        graph = self._graph(request)
        record = self._record(request, graph, comparison, version)
        try:
            session, figures = self._prove(graph, record, folder, request.reference)
        except PublishRefused as refused:
            if refused.gate != "parity" or not self.template.swappable:
                raise
            # What was a constant before no longer is, and no walk over the module's attributes has seen it.
            graph = self.template.exported_anew()
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
        """The graph with a request's weights, of the module in the request's state."""
        state = request.state
        if state is not None and state is not self.template.state:
            self.template = self.template.of_state(state, request.weights, self._export)
        return self.template.with_weights(request.weights, self._export)

    def _prove(
        self, graph: OnnxGraph, record: Manifest, folder: Path, reference: Mapping[str, np.ndarray] | None
    ) -> tuple[GraphSession, dict[str, dict[str, float]]]:
        """Write a graph, and let it pass the gates as it lies there; open, and how far it is from torch."""
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
        """The manifest, but for what is only known of the files."""
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

    def prune(self) -> None:
        """Remove the versions that the settings no longer keep."""
        self.repository.prune(
            self.model, self.settings.keep, num_versions=self.settings.model_config.num_versions
        )


def tolerance_of(settings: Publish) -> Tolerance:
    """The settings' tolerances, as the comparison takes them."""
    return Tolerance(**vars(settings.tolerance))


def golden_archive(
    session: GraphSession, sample: Mapping[str, np.ndarray], rows: int, max_bytes: int
) -> bytes | None:
    """A golden.npz: a few real samples as `inputs/<name>`, and the graph's answers as `outputs/<name>`.

    Rows are left out from the end until the arrays have at most `max_bytes`; None where not one fits.
    """
    max_bytes = min(
        max_bytes, MOST_GOLDEN_BYTES // 2
    )  # what reads it takes no more, the heads of its arrays included
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
