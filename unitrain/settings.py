"""Every section of a settings file beside Lightning's own, frozen, with its defaults.

A section that is absent has these defaults and is on; one set to null is off.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

PROJECTOR_MAX_POINTS = 100_000


def _at_least(section: object, minimum: float, *names: str) -> None:
    for name in names:
        if getattr(section, name) < minimum:
            where = f"{type(section).__name__.lower()}.{name}"
            raise ValueError(f"{where} must be at least {minimum}, got {getattr(section, name)}")


@dataclass(frozen=True)
class Monitor:
    """The one metric that early stopping, the best checkpoint and the improvement gate look at."""

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
    """Samples in a snapshot at most."""
    max_width: int = 4096
    """Values a point at most; a wider tensor is left out, and the run says so."""
    keep: int = 5
    """Newest snapshots kept."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "every_n_validations", "max_points", "max_width", "keep")
        if self.max_points > PROJECTOR_MAX_POINTS:
            raise ValueError(
                f"embeddings.max_points must be at most {PROJECTOR_MAX_POINTS}, which is what the Projector's page "
                f"asks for, got {self.max_points}"
            )


@dataclass(frozen=True)
class Summaries:
    """What TensorBoard shows beside the scalars that the module logs."""

    histograms_every_n_validations: int = 5
    """Weight histograms each time that many validations have run; 0: none."""
    graph: bool = True
    """The model's graph, once."""

    def __post_init__(self) -> None:
        _at_least(self, 0, "histograms_every_n_validations")


@dataclass(frozen=True)
class Publish:
    """Versions of the model for the Triton repository, proven before they are put there."""

    every_n_validations: int = 5
    """Publish each time that many validations have run, and always at the end."""
    repository: str = "triton_repo"
    """The model repository's folder, relative to the project root."""
    model: str | None = None
    """The served model's name; default: the experiment's name."""
    require_improvement: bool = False
    """Refuse a version whose monitored metric is worse than the newest one's on the same data."""
    keep: int = 5
    """Versions kept on disk; never fewer than num_versions + 2, never one younger than a minute removed."""
    num_versions: int = 2
    """Newest versions that Triton serves side by side, so that clients pinned to one survive a swap."""
    max_batch_size: int = 1024
    """Rows a request at most."""
    max_queue_delay_microseconds: int = 100
    """How long Triton may hold a request to batch it with others."""
    golden: int = 4
    """Validation samples kept with their outputs in golden.npz, for checks; 0: none. They are deployed data."""
    opset: int = 20
    """ONNX operator set of the graph."""
    absolute_tolerance: float = 1e-4
    """Largest accepted difference of onnxruntime from torch, in the output's unit, beside the relative one."""
    relative_tolerance: float = 1e-3
    """Largest accepted difference of onnxruntime from torch, relative to torch's value."""
    strict: bool = False
    """End the training with an error when a version can't be published."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "every_n_validations", "keep", "num_versions", "max_batch_size")
        _at_least(
            self, 0, "max_queue_delay_microseconds", "golden", "absolute_tolerance", "relative_tolerance"
        )


@dataclass(frozen=True)
class Client:
    """The class that brings samples to `predict --config` and takes the answers."""

    class_path: str
    """A `unitrain.client.ClientIO`, by its import path."""
    init_args: dict[str, Any] = field(default_factory=dict)
    """Its options."""
