"""Versions beside each other by the metric that was monitored when they were published."""

from dataclasses import replace

import pytest

from unitrain.repository.manifest import Manifest, Metric
from unitrain.repository.ranking import compare_with, marks, measured, obstacle
from unitrain.signature import Signature


def manifest(value: float, *, mode: str = "min", fingerprint: str | None = "samples:1") -> Manifest:
    """A version with that metric."""
    signature = Signature((), (), batched=True)
    metric = Metric("val_loss", value, mode, "models.A")
    return Manifest("m", 3, "now", "r", "/r", 1, 1, "ema", signature, "0", metric, fingerprint)


@pytest.mark.parametrize(
    ("mode", "value", "outcome"),
    [("min", 0.5, "better"), ("min", 1.0, "equal"), ("min", 2.0, "worse"), ("max", 2.0, "better"),
     ("max", 0.5, "worse")],
)  # fmt: skip
def test_outcome_follows_the_mode(mode: str, value: float, outcome: str) -> None:
    """The lower or the higher value is the better one."""
    ours = measured(manifest(value, mode=mode))
    assert compare_with(ours, 3, manifest(1.0, mode=mode)).outcome == outcome


def test_what_keeps_two_versions_from_being_compared_is_said() -> None:
    """Another metric, mode, definition or data, or one of them missing; damaged records are no obstacle."""
    ours, theirs = measured(manifest(1.0)), manifest(2.0)
    assert theirs.metric is not None
    metric = theirs.metric
    found = {
        "manifest": obstacle(ours, None),
        "no metric": obstacle(ours, replace(theirs, metric=None)),
        "its metric is acc": obstacle(ours, replace(theirs, metric=replace(metric, name="acc"))),
        "highest": obstacle(ours, replace(theirs, metric=replace(metric, mode="max"))),
        "by models.B": obstacle(ours, replace(theirs, metric=replace(metric, definition="models.B"))),
        "no fingerprint": obstacle(ours, replace(theirs, data_fingerprint=None)),
        "first validation batch": obstacle(ours, replace(theirs, data_fingerprint="c0ffee")),
        "other data": obstacle(ours, replace(theirs, data_fingerprint="samples:2")),
        "because of this": obstacle(replace(ours, fingerprint=None, reason="because of this"), theirs),
        "this one has no metric": obstacle(replace(ours, metric=None), theirs),
    }
    for value in (float("nan"), None, "0.5"):
        text = obstacle(ours, replace(theirs, metric=replace(metric, value=value)))  # type: ignore[arg-type]
        found |= {f"not a finite number{'':{len(found)}}": text}
    assert all(part.strip() in (text or "") for part, text in found.items())
    assert obstacle(ours, theirs) is None
    assert obstacle(ours, replace(theirs, metric=replace(metric, definition=None))) is None


def test_marks_are_among_comparable_versions() -> None:
    """Better or worse than the version before, and the best of all; a version alone is no best."""
    other = manifest(0.1, fingerprint="samples:2")
    found = marks([manifest(0.5), manifest(0.3), None, manifest(0.4), other, manifest(0.3), manifest(0.6)])
    assert [mark.text for mark in found] == ["", "▲★", "", "", "", "★", "▼"]
