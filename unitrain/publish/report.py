"""What became of a request, in one line for people."""

from unitrain.errors import PublishRefused
from unitrain.manifest import Manifest
from unitrain.publish.policy import HeldBack
from unitrain.publish.worker import Outcome
from unitrain.repository.ranking import marks_of
from unitrain.repository.verify import Check


def gate_of(error: Exception) -> str:
    """The gate that refused a version, or the kind of error that kept it from being published."""
    return error.gate if isinstance(error, PublishRefused) else type(error).__name__


def outcome_text(outcome: Outcome, *, again: bool = False) -> str:
    """The line of a version that was published, or of one that was not: the gate and its reason.

    Args:
        again: of a version that is held back, leave out the ways to publish it.
    """
    if outcome.manifest is not None and outcome.served is not None:
        return served_text(outcome.manifest, outcome.served)
    if outcome.manifest is not None:
        text = published_text(outcome.manifest)
        return text if outcome.error is None else f"{text}; older ones could not be pruned: {outcome.error}"
    error = outcome.error or RuntimeError("no reason was given")
    if isinstance(error, HeldBack):
        mark = marks_of(error.comparison.outcome, best=False)
        step = f"step {outcome.request.step}{f' {mark}' if mark else ''}"
        return f"{step} is held back: {error.short if again else error}"
    return f"step {outcome.request.step} was not published: {gate_of(error)}: {error}"


def figures_of(outcome: Outcome) -> dict[str, float]:
    """What a curve can show of a published version: its number, its metric, its distance from torch by output."""
    manifest, metric = outcome.manifest, outcome.request.metric
    if isinstance(outcome.error, HeldBack) and metric is not None:
        return {f"held_back/{metric.name}": metric.value}
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
    """Version, step, the metric now and then with its marks, and how far onnxruntime is from torch."""
    told = [f"step {manifest.step}"]
    compared = manifest.comparison or {}
    if manifest.metric:
        then = manifest.previous
        before = f" (version {then['version']}: {then['value']:.5g})" if then else ""
        marks = marks_of(compared.get("outcome"), best=compared.get("best", False))
        told.append(
            f"{manifest.metric.name} {manifest.metric.value:.5g}{f' {marks}' if marks else ''}{before}"
        )
    worst = {
        key: max((figures[key] for figures in manifest.parity.values()), default=0.0)
        for key in ("max_abs", "max_rel")
    }
    told.append(f"parity {worst['max_abs']:.1e} absolute, {worst['max_rel']:.1e} relative")
    reason = compared.get("reason")
    if reason and not compared["same_run"]:
        told.append(f"not comparable with version {compared['version']}, because {reason}")
    return f"published {manifest.model} version {manifest.version}: {', '.join(told)}"
