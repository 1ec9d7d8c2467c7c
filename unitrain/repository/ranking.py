"""Comparison of versions by the metric that was monitored when they were published.

Two values can be compared when they are the same metric, measured on the same validation data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unitrain.errors import RepositoryError
from unitrain.import_aliases import canonical_name
from unitrain.repository.manifest import Manifest, Metric, read_manifest
from unitrain.repository.repository import Repository

Outcome = Literal["better", "equal", "worse"]

BETTER, WORSE, BEST = "▲", "▼", "★"
FINGERPRINT_KIND = "samples:"
"""Prefix of a fingerprint of all validation samples; one without it is of the first batch alone."""


@dataclass(frozen=True)
class Measured:
    """Metric with the validation data that it was measured on.

    Attributes:
        metric: metric; None if no validation measured it.
        fingerprint: fingerprint of the validation data; None if there is none.
        reason: reason for a missing fingerprint.
    """

    metric: Metric | None
    fingerprint: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Comparison of a version's metric with an earlier version's.

    Attributes:
        version: the earlier version.
        run: run of the earlier version; None if it has no manifest.
        outcome: result; None if the two can't be compared.
        value: the earlier version's metric; None if the two can't be compared.
        reason: reason that prevents a comparison.
        best: True if there are comparable versions in the repository and none is better.
    """

    version: int
    run: str | None
    outcome: Outcome | None = None
    value: float | None = None
    reason: str | None = None
    best: bool = False

    def to_json(self, run: str) -> dict[str, Any]:
        """Return the field `comparison` for the manifest of a version of that run."""
        return {
            "version": self.version,
            "same_run": self.run == run,
            "outcome": self.outcome,
            "value": self.value,
            "reason": self.reason,
            "best": self.best,
        }


@dataclass(frozen=True)
class Mark:
    """Rank of a version among comparable versions.

    Attributes:
        outcome: its metric compared with that of the version before; None if the two can't be compared.
        best: True if there are comparable versions and none is better.
    """

    outcome: Outcome | None = None
    best: bool = False

    @property
    def text(self) -> str:
        """Marks: ▲ better, ▼ worse, ★ best; empty for none of them."""
        return marks_of(self.outcome, best=self.best)


def marks_of(outcome: str | None, *, best: bool) -> str:
    """Return the marks of an outcome as the tables show them."""
    return {"better": BETTER, "worse": WORSE}.get(outcome or "", "") + (BEST if best else "")


def measured(manifest: Manifest) -> Measured:
    """Return the metric of a published version."""
    return Measured(manifest.metric, manifest.data_fingerprint)


def obstacle(ours: Measured, theirs: Manifest | None) -> str | None:
    """Return the reason that prevents comparing a metric with a version's; None if there is none.

    Args:
        ours: metric of the new version.
        theirs: manifest of the version; None if it has none that can be read.
    """
    mine = ours.metric
    if theirs is None:
        return "it has no manifest that can be read"
    if mine is None:
        return "this one has no metric"
    if theirs.metric is None:
        return "it has no metric"
    return _other_metric(mine, theirs.metric) or _other_data(ours, theirs.data_fingerprint)


def outcome_of(ours: Metric, theirs: Metric) -> Outcome:
    """Compare a metric with another of the same name and mode."""
    if ours.value == theirs.value:
        return "equal"
    smaller = ours.value < theirs.value
    return "better" if smaller == (ours.mode == "min") else "worse"


def compare_with(
    ours: Measured, version: int, theirs: Manifest | None, others: Sequence[Manifest] = ()
) -> Comparison:
    """Compare a metric with a version's.

    Args:
        ours: metric of the new version.
        version: version number to compare with.
        theirs: manifest of that version; None if it has none that can be read.
        others: manifests of all versions in the repository, for `best`.
    """
    best = _is_best(ours, others)
    run = theirs.run if theirs else None
    reason = obstacle(ours, theirs)
    if reason is not None or theirs is None or theirs.metric is None or ours.metric is None:
        return Comparison(version, run, reason=reason, best=best)
    return Comparison(version, run, outcome_of(ours.metric, theirs.metric), theirs.metric.value, best=best)


def compare_with_newest(repository: Repository, model: str, ours: Measured) -> Comparison | None:
    """Compare a metric with that of the newest version; return None if there is no version.

    A rollback publishes the earlier version again, so the newest version is never one that was rolled back.
    """
    versions = repository.versions(model)
    if not versions:
        return None
    manifests = [readable_manifest(repository, model, version) for version in versions]
    known = [manifest for manifest in manifests if manifest is not None]
    return compare_with(ours, versions[-1], manifests[-1], known)


def marks(manifests: Sequence[Manifest | None]) -> list[Mark]:
    """Return the marks of a model's versions.

    Args:
        manifests: manifest by version, ascending; None for a version without one that can be read.
    """
    known = [manifest for manifest in manifests if manifest is not None]
    found = []
    for before, manifest in zip([None, *manifests], manifests, strict=False):
        if manifest is None:
            found.append(Mark())
            continue
        others = [other for other in known if other is not manifest]
        compared = compare_with(measured(manifest), 0, before, others)
        found.append(Mark(compared.outcome, compared.best))
    return found


def readable_manifest(repository: Repository, model: str, version: int) -> Manifest | None:
    """Read a version's manifest; return None if it has none that can be read, which is no error here."""
    try:
        return read_manifest(repository.version_dir(model, version))
    except RepositoryError:
        return None


def _is_best(ours: Measured, others: Sequence[Manifest]) -> bool:
    if ours.metric is None:
        return False
    rivals = [
        outcome_of(ours.metric, other.metric)
        for other in others
        if other.metric is not None and obstacle(ours, other) is None
    ]
    return bool(rivals) and "worse" not in rivals


def _other_metric(mine: Metric, theirs: Metric) -> str | None:
    if mine.name != theirs.name:
        return f"its metric is {theirs.name}, not {mine.name}"
    if mine.mode != theirs.mode:
        return f"there the {'lowest' if theirs.mode == 'min' else 'highest'} {mine.name} is the best"
    ours, others = (canonical_name(metric.definition or "") for metric in (mine, theirs))
    if ours and others and ours != others:
        return f"its {mine.name} is computed by {theirs.definition}, not by {mine.definition}"
    for value, whose in ((theirs.value, "its"), (mine.value, "this one's")):
        # A manifest has null for NaN, and a user may have edited it.
        if not isinstance(value, int | float) or not math.isfinite(value):
            return f"{whose} {mine.name} is not a finite number"
    return None


def _other_data(ours: Measured, theirs: str | None) -> str | None:
    if ours.fingerprint is None:
        return ours.reason or "this one's validation data have no fingerprint"
    if theirs is None:
        return "its validation data have no fingerprint"
    if not str(theirs).startswith(FINGERPRINT_KIND):
        return "its fingerprint is of the first validation batch alone, as earlier releases took it"
    return None if theirs == ours.fingerprint else "it was validated on other data"
