"""What became of a request, in one line for people."""

from unitrain.errors import PublishRefused
from unitrain.manifest import Manifest
from unitrain.publish.worker import Outcome
from unitrain.repository.verify import Check


def gate_of(error: Exception) -> str:
    """The gate that refused a version, or the kind of error that kept it from being published."""
    return error.gate if isinstance(error, PublishRefused) else type(error).__name__


def outcome_text(outcome: Outcome) -> str:
    """The line of a version that was published, or of one that was not: the gate and its reason."""
    if outcome.manifest is not None and outcome.served is not None:
        return served_text(outcome.manifest, outcome.served)
    if outcome.manifest is not None:
        text = published_text(outcome.manifest)
        return text if outcome.error is None else f"{text}; older ones could not be pruned: {outcome.error}"
    error = outcome.error or RuntimeError("no reason was given")
    return f"step {outcome.request.step} was not published: {gate_of(error)}: {error}"


def figures_of(outcome: Outcome) -> dict[str, float]:
    """What a curve can show of a published version: its number, its metric, its distance from torch by output."""
    manifest = outcome.manifest
    if manifest is None or outcome.served is not None:
        return {}
    figures: dict[str, float] = {"version": manifest.version}
    if manifest.metric is not None:
        figures[manifest.metric.name] = manifest.metric.value
    for output, parity in manifest.parity.items():
        figures |= {f"parity_{name}/{output}": value for name, value in parity.items()}
    return figures


def served_text(manifest: Manifest, check: Check) -> str:
    """How the server answered a version's golden samples."""
    how = {True: "is served", False: "is not served as published", None: "was not asked of the server"}
    return f"{manifest.model} version {manifest.version} {how[check.passed]}: {check.detail}"


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
