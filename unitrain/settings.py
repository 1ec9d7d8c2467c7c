"""Every section of a settings file beside Lightning's own, frozen, with its defaults.

A section that is absent has these defaults and is on; one set to null is off.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

PROJECTOR_MAX_POINTS = 100_000
ONNX_FILE_MAX_BYTES = 1_800_000_000

Reduction = Literal["flatten", "mean", "first", "centre"]
"""How a tensor becomes a point of the Projector."""

_FLOATS = ("FP16", "FP32", "FP64")
_PAIR = 2


def _at_least(section: object, minimum: float, *names: str) -> None:
    for name in names:
        if getattr(section, name) < minimum:
            words = re.findall("[A-Z][a-z]*", type(section).__name__)
            where = f"{'_'.join(words).lower()}.{name}"
            raise ValueError(f"{where} must be at least {minimum}, got {getattr(section, name)}")


@dataclass(frozen=True)
class Monitor:
    """The one metric that early stopping, the best checkpoint and `publish.policy` look at."""

    metric: str = "val_loss"
    """Name, as the module logs it."""
    mode: Literal["min", "max"] = "min"
    """Which direction is better."""


@dataclass(frozen=True)
class Ema:
    """Exponential moving average (EMA) of the weights: validated, saved, tested and served."""

    decay: float = 0.998
    """Share of the average that is kept at each update, in [0, 1)."""
    warm_up: bool = True
    """Use min(decay, (1 + n) / (10 + n)) at update n, so that early averages forget the initial weights."""
    every_n_steps: int = 1
    """Update once every that many optimizer steps."""
    average_buffers: bool = False
    """Average floating-point buffers too, rather than copying them; integer buffers are always copied."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay must be in [0, 1), got {self.decay}")
        _at_least(self, 1, "every_n_steps")


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the monitored metric no longer improves."""

    patience: int = 20
    """Validations without improvement before training stops."""
    min_delta: float = 0.0
    """Change of the metric that counts as an improvement, in the metric's unit."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "patience", "min_delta")


@dataclass(frozen=True)
class Embeddings:
    """Inputs, outputs and labels of the validation set, for TensorBoard's Embedding Projector."""

    every_n_validations: int = 10
    """Take a snapshot each time that many validations have run, and always at the end."""
    max_points: int = 10_000
    """Samples in a snapshot at most: of more, the same ones each time, as many of each class as can be."""
    max_bytes: int = 512 * 1024 * 1024
    """Bytes of a snapshot's points in memory at most, which may mean fewer points; two such take turns."""
    max_width: int = 4096
    """Values a point at most; a wider tensor is left out, and the run says so."""
    reduce: dict[str, Reduction] = field(default_factory=dict)
    """By tensor, how it becomes a point: `mean` over space or time, `first` token, `centre` of a patch."""
    thumbnail_px: int = 32
    """Side of the small picture of the first input that is an image or a signal, of which a channel is drawn for
    each 10 pixels; 0: none."""
    seed: int = 0
    """Of the choice of samples, where there are more than max_points."""
    keep: int = 5
    """Newest snapshots kept."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "every_n_validations", "max_points", "max_bytes", "max_width", "keep")
        _at_least(self, 0, "thumbnail_px", "seed")
        if self.max_points > PROJECTOR_MAX_POINTS:
            raise ValueError(
                f"embeddings.max_points must be at most {PROJECTOR_MAX_POINTS}, which is what the Projector's page "
                f"asks for, got {self.max_points}"
            )


@dataclass(frozen=True)
class Summaries:
    """What TensorBoard shows beside the scalars that the module logs."""

    histograms_every_n_validations: int = 5
    """Weight histograms, and what the model's `summaries()` gives, each time that many validations have run and
    at the end; 0: no histograms, and summaries at the end alone."""
    gradient_norm: bool = True
    """The gradients' norm over all parameters, before it is clipped, at each step that is logged."""
    graph: bool = True
    """The model's graph, once."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "histograms_every_n_validations")


@dataclass(frozen=True)
class Publish:
    """Versions of the model for the Triton repository, proven before they are put there."""

    every_n_validations: int = 5
    """Publish each time that many validations have run, and always at the end."""
    policy: Literal["best", "every"] = "best"
    """best: publish the best weights so far by the monitored metric, unless the version that is served is better;
    every: publish the weights as they are, each time."""
    repository: str = "triton_repo"
    """The model repository's folder, relative to the project root."""
    model: str | None = None
    """The served model's name; default: the experiment's name."""
    require_improvement: bool | None = None
    """Deprecated: true is `policy: best`, and false has no effect."""
    keep: int = 5
    """Versions kept on disk; never fewer than num_versions + 2, never one younger than a minute removed."""
    num_versions: int = 2
    """Newest versions that Triton serves side by side, so that clients pinned to one survive a swap."""
    max_batch_size: int = 1024
    """Rows a request at most."""
    max_queue_delay_microseconds: int = 0
    """How long Triton may hold a request to batch it with others; those that wait anyway are batched at 0, too."""
    warm_up: bool = False
    """Let Triton run one request of zeros on each load, before a version is served."""
    dynamic_axes: dict[str, dict[int, str]] = field(default_factory=dict)
    """Axes of the inputs that may have any length, by input and axis (0 is the batch, which may anyway), each with a
    name: {signals: {2: steps}}. They take the place of the module's own `dynamic_axes`."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of config.pbtxt that take the place of ours, by Triton's names: {instance_group: [{count: 2}]}."""
    golden: int = 4
    """Validation samples kept with their outputs in golden.npz, for checks; 0: none. They are deployed data."""
    golden_max_bytes: int = 1_000_000
    """Bytes that these samples may have, uncompressed; so many fewer are kept, or none."""
    opset: int = 20
    """ONNX operator set of the graph."""
    absolute_tolerance: float = 1e-4
    """Largest accepted difference of onnxruntime from torch, in the output's unit, beside the relative one."""
    relative_tolerance: float = 1e-3
    """Largest accepted difference of onnxruntime from torch, relative to torch's value."""
    tolerances: dict[str, list[float]] = field(default_factory=lambda: {"FP16": [1e-2, 1e-2]})
    """Other [absolute, relative] tolerances for outputs of a type, by Triton's name of it."""
    integer_share: float = 1e-3
    """Share of an integer or bool output's values that may differ: an argmax of nearly equal values."""
    external_data_above_bytes: int = 1_000_000
    """Weights of more bytes lie in a file beside the graph. One file can't pass 2 GB, and making it keeps the
    training waiting: 35 MB for a quarter of a second."""
    server: str | None = None
    """host:port of a Triton that serves the repository: each version is waited for there, and asked its golden
    samples; what comes of it is reported."""
    server_wait_s: float = 60.0
    """How long that server may take to have a version."""
    strict: bool = False
    """End the training with an error when a version can't be published."""

    def __post_init__(self) -> None:
        if self.require_improvement and self.policy != "best":
            raise ValueError(
                f"publish.require_improvement: true means publish.policy: best, but the policy is {self.policy}; "
                "remove require_improvement"
            )
        _at_least(self, 1, "every_n_validations", "keep", "num_versions", "max_batch_size")
        _at_least(
            self, 0, "max_queue_delay_microseconds", "golden", "golden_max_bytes", "absolute_tolerance",
            "relative_tolerance", "integer_share", "external_data_above_bytes", "server_wait_s",
        )  # fmt: skip
        if self.external_data_above_bytes > ONNX_FILE_MAX_BYTES:
            raise ValueError(
                f"publish.external_data_above_bytes must be at most {ONNX_FILE_MAX_BYTES}, since an ONNX file can't "
                f"pass 2 GB, got {self.external_data_above_bytes}"
            )
        for name, axes in self.dynamic_axes.items():
            for axis, label in axes.items():
                if axis < 1 or not label.isidentifier():
                    raise ValueError(
                        f"publish.dynamic_axes.{name}: expected axes from 1 on (0 is the batch) with a name each, as "
                        f"{{2: steps}}, got {{{axis}: {label}}}"
                    )
        for name, pair in self.tolerances.items():
            if name not in _FLOATS or len(pair) != _PAIR or min(pair) < 0:
                raise ValueError(
                    f"publish.tolerances.{name}: expected [absolute, relative] of one of {', '.join(_FLOATS)}, "
                    f"neither below 0, got {pair}"
                )


@dataclass(frozen=True)
class Client:
    """The class that brings samples to `predict --config` and takes the answers."""

    class_path: str
    """A `unitrain.client.ClientIO`, by its import path."""
    init_args: dict[str, Any] = field(default_factory=dict)
    """Its options."""
