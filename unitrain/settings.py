"""Sections of a settings file beside Lightning's own, as frozen dataclasses with defaults.

An omitted section is enabled with its defaults; null turns it off. The string below a field gives its
meaning and unit, and is its text in `fit --help`.

Example:
    >>> Publish().golden
    PublishGolden(samples=4, max_bytes=1000000)
    >>> Publish(keep=0)
    Traceback (most recent call last):
    ValueError: publish.keep must be at least 1, got 0
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

PROJECTOR_MAX_POINTS = 100_000
ONNX_FILE_MAX_BYTES = 1_800_000_000

Reduction = Literal["flatten", "mean", "first", "centre"]
"""Reduction of a tensor to one vector a sample for the Embedding Projector."""

_FLOATS = ("FP16", "FP32", "FP64")
_PAIR = 2


def setting_names(section: str, kind: type) -> Iterator[str]:
    """Yield the dotted name of every setting of a section, nested groups included.

    >>> list(setting_names("early_stopping", EarlyStopping))
    ['early_stopping.patience', 'early_stopping.min_delta']
    """
    for setting in dataclasses.fields(kind):
        name = f"{section}.{setting.name}"
        yield name
        if isinstance(setting.type, type) and dataclasses.is_dataclass(setting.type):
            yield from setting_names(name, setting.type)


def _at_least(section: object, where: str, minimum: float, *names: str) -> None:
    for name in names:
        if getattr(section, name) is None:
            raise ValueError(f"{where}.{name}: expected a number, got null")
        if getattr(section, name) < minimum:
            raise ValueError(f"{where}.{name} must be at least {minimum}, got {getattr(section, name)}")


@dataclass(frozen=True)
class Monitor:
    """Metric that selects the best checkpoint; early stopping and `publish.policy` also use it."""

    metric: str = "val_loss"
    """Name under which the module logs the metric."""
    mode: Literal["min", "max"] = "min"
    """min: lower is better; max: higher is better."""


@dataclass(frozen=True)
class Ema:
    """Exponential moving average (EMA) of the weights: validated, saved, tested and served."""

    decay: float = 0.998
    """Share of the average that each update keeps, in [0, 1)."""
    decay_warmup: bool = True
    """Use min(decay, (1 + n) / (10 + n)) at update n, which discards the initial weights early."""
    every_n_steps: int = 1
    """Optimizer steps between two updates."""
    average_buffers: bool = False
    """Average floating-point buffers instead of copying them; integer buffers are always copied."""

    def __post_init__(self) -> None:
        _at_least(self, "ema", 0, "decay")
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay must be in [0, 1), got {self.decay}")
        _at_least(self, "ema", 1, "every_n_steps")


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the monitored metric no longer improves."""

    patience: int = 20
    """Validations without improvement before training stops."""
    min_delta: float = 0.0
    """Smallest change that counts as an improvement, in the metric's unit."""

    def __post_init__(self) -> None:
        _at_least(self, "early_stopping", 0, "patience", "min_delta")


@dataclass(frozen=True)
class Embeddings:
    """Inputs, outputs and labels of validation samples, for TensorBoard's Embedding Projector."""

    every_n_validations: int = 10
    """Validations between two snapshots; the end of training always writes one."""
    max_points: int = 10_000
    """Maximum number of samples in a snapshot; a larger set is sampled once, evenly over the classes."""
    max_bytes: int = 512 * 1024 * 1024
    """Maximum memory of a snapshot's points in bytes, which may reduce their number; two are held at a time."""
    max_width: int = 4096
    """Maximum number of values a point; the run reports and skips a wider tensor."""
    reduce: dict[str, Reduction] = field(default_factory=dict)
    """Reduction by tensor: flatten (default), mean over space or time, first token, or centre of a patch."""
    thumbnail_px: int = 32
    """Side of a point's thumbnail in pixels, from the first input that is an image or a signal (a channel for each
    10 pixels); 0: no thumbnails."""
    seed: int = 0
    """Seed that selects the samples if there are more than max_points."""
    keep: int = 5
    """Newest snapshots to keep."""

    def __post_init__(self) -> None:
        _at_least(
            self, "embeddings", 1, "every_n_validations", "max_points", "max_bytes", "max_width", "keep"
        )
        _at_least(self, "embeddings", 0, "thumbnail_px", "seed")
        if self.max_points > PROJECTOR_MAX_POINTS:
            raise ValueError(
                f"embeddings.max_points must be at most {PROJECTOR_MAX_POINTS}, the Embedding Projector's limit, "
                f"got {self.max_points}"
            )


@dataclass(frozen=True)
class Summaries:
    """TensorBoard summaries beside the scalars that the module logs."""

    histograms_every_n_validations: int = 5
    """Validations between two sets of weight histograms and of the module's `summaries()`; the end of training always
    writes one; 0: no histograms, and `summaries()` at the end only."""
    gradient_norm: bool = True
    """Log the norm of all gradients, before clipping, at each logged step."""
    graph: bool = True
    """Write the model's graph once."""

    def __post_init__(self) -> None:
        _at_least(self, "summaries", 0, "histograms_every_n_validations")


@dataclass(frozen=True)
class PublishModelConfig:
    """Fields of the model configuration, config.pbtxt, under Triton's names."""

    num_versions: int = 2
    """Newest versions that Triton serves side by side: clients pinned to a version survive a swap."""
    max_batch_size: int = 1024
    """Maximum number of rows a request."""
    max_queue_delay_microseconds: int = 0
    """Time for which Triton may delay a request to batch it with others; 0 batches only those already queued."""
    model_warmup: bool = False
    """Let Triton run one request of zeros on each load, before it serves a version."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Any fields of config.pbtxt, which replace the generated ones: {instance_group: [{count: 2}]}."""

    def __post_init__(self) -> None:
        _at_least(self, "publish.model_config", 1, "num_versions", "max_batch_size")
        _at_least(self, "publish.model_config", 0, "max_queue_delay_microseconds")


@dataclass(frozen=True)
class PublishOnnx:
    """ONNX graph of a version."""

    opset: int = 20
    """ONNX operator set."""
    dynamic_axes: dict[str, dict[int, str]] = field(default_factory=dict)
    """Input axes of variable length beside the batch axis 0, by input and axis, each with a name:
    {signals: {2: steps}}; replaces the module's `dynamic_axes`."""
    external_data_above_bytes: int = 1_000_000
    """Size above which weights are stored in a file beside the graph. A graph file is limited to 2 GB, and making one
    blocks training (a quarter of a second for 35 MB)."""

    def __post_init__(self) -> None:
        _at_least(self, "publish.onnx", 0, "external_data_above_bytes")
        if self.external_data_above_bytes > ONNX_FILE_MAX_BYTES:
            raise ValueError(
                f"publish.onnx.external_data_above_bytes must be at most {ONNX_FILE_MAX_BYTES}, since an ONNX file is "
                f"limited to 2 GB, got {self.external_data_above_bytes}"
            )
        for name, axes in self.dynamic_axes.items():
            for axis, label in axes.items():
                if axis < 1 or not label.isidentifier():
                    raise ValueError(
                        f"publish.onnx.dynamic_axes.{name}: expected axes from 1 on (0 is the batch) with a name each, "
                        f"as {{2: steps}}, got {{{axis}: {label}}}"
                    )


@dataclass(frozen=True)
class PublishGolden:
    """Golden samples: validation inputs with their outputs, stored in golden.npz and deployed with a version."""

    samples: int = 4
    """Number of samples; 0: none."""
    max_bytes: int = 1_000_000
    """Maximum uncompressed size in bytes; fewer samples are kept if they exceed it."""

    def __post_init__(self) -> None:
        _at_least(self, "publish.golden", 0, "samples", "max_bytes")


@dataclass(frozen=True)
class PublishTolerance:
    """Accepted difference of ONNX Runtime's outputs from PyTorch's: absolute + relative * |value|."""

    absolute: float = 1e-4
    """Absolute term, in the output's unit."""
    relative: float = 1e-3
    """Relative term, as a share of PyTorch's value."""
    by_dtype: dict[str, list[float]] = field(default_factory=lambda: {"FP16": [1e-2, 1e-2]})
    """Other [absolute, relative] pairs for outputs of a dtype, by Triton's name: FP16, FP32 or FP64."""
    integer_share: float = 1e-3
    """Share of an integer or bool output's values that may differ, such as an argmax of nearly equal scores."""

    def __post_init__(self) -> None:
        _at_least(self, "publish.tolerance", 0, "absolute", "relative", "integer_share")
        for name, pair in self.by_dtype.items():
            if name not in _FLOATS or len(pair) != _PAIR or min(pair) < 0:
                raise ValueError(
                    f"publish.tolerance.by_dtype.{name}: expected [absolute, relative] for one of "
                    f"{', '.join(_FLOATS)}, neither below 0, got {pair}"
                )


@dataclass(frozen=True)
class PublishServer:
    """Running Triton that must load each version and reproduce its golden samples; the result is reported."""

    url: str | None = None
    """Address of its gRPC port, as host:port; null: no check."""
    timeout_s: float = 60.0
    """Maximum time in seconds until the server has loaded a version."""

    def __post_init__(self) -> None:
        _at_least(self, "publish.server", 0, "timeout_s")


@dataclass(frozen=True)
class Publish:
    """Publish versions of the model to the Triton model repository while it trains."""

    every_n_validations: int = 5
    """Validations between two publications; the end of training always publishes."""
    policy: Literal["best", "every"] = "best"
    """best: publish the best weights by the monitored metric, unless the served version is better;
    every: publish the current weights each time."""
    repository: str = "triton_repo"
    """Folder of the model repository, relative to the project root."""
    model: str | None = None
    """Name of the served model; null: the experiment's name."""
    keep: int = 5
    """Newest versions to keep on disk. A minimum of num_versions + 2 stays, and every version younger than a minute."""
    fail_on_error: bool = False
    """Stop training with an error if a version can't be published."""
    model_config: PublishModelConfig = field(default_factory=PublishModelConfig)
    """Fields of config.pbtxt, under Triton's names."""
    onnx: PublishOnnx = field(default_factory=PublishOnnx)
    """ONNX graph."""
    golden: PublishGolden = field(default_factory=PublishGolden)
    """Golden samples that are deployed with each version."""
    tolerance: PublishTolerance = field(default_factory=PublishTolerance)
    """Accepted difference of ONNX Runtime from PyTorch."""
    server: PublishServer = field(default_factory=PublishServer)
    """Running Triton that each version is checked on."""

    def __post_init__(self) -> None:
        _at_least(self, "publish", 1, "every_n_validations", "keep")


@dataclass(frozen=True)
class ClientIO:
    """Class that supplies samples to `predict --config` and receives the answers."""

    class_path: str
    """Import path of a `unitrain.client.ClientIO`."""
    init_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the class."""


SECTIONS: dict[str, type] = {
    "monitor": Monitor,
    "ema": Ema,
    "early_stopping": EarlyStopping,
    "embeddings": Embeddings,
    "summaries": Summaries,
    "publish": Publish,
    "client_io": ClientIO,
}
"""Dataclass of each section, by its key in a settings file."""
