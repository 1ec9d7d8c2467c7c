"""What became of a request, in one line for people."""

from unitrain.errors import PublishRefused
from unitrain.manifest import Manifest
from unitrain.publish.worker import Outcome


def gate_of(error: Exception) -> str:
    """The gate that refused a version, or the kind of error that kept it from being published."""
    return error.gate if isinstance(error, PublishRefused) else type(error).__name__


def outcome_text(outcome: Outcome) -> str:
    """The line of a version that was published, or of one that was not: the gate and its reason."""
    if outcome.manifest is not None:
        return published_text(outcome.manifest)
    error = outcome.error or RuntimeError("no reason was given")
    return f"step {outcome.request.step} was not published: {gate_of(error)}: {error}"


def published_text(manifest: Manifest) -> str:
    """Version, step, the metric now and then, and how far onnxruntime is from torch."""
    told = [f"step {manifest.step}"]
    if manifest.metric:
        then = manifest.previous
        before = f" (version {then['version']}: {then['value']:.5g})" if then else ""
        told.append(f"{manifest.metric.name} {manifest.metric.value:.5g}{before}")
    worst = {
        key: max((figures[key] for figures in manifest.parity.values()), default=0.0)
        for key in ("max_abs", "max_rel")
    }
    told.append(f"parity {worst['max_abs']:.1e} absolute, {worst['max_rel']:.1e} relative")
    return f"published {manifest.model} version {manifest.version}: {', '.join(told)}"
