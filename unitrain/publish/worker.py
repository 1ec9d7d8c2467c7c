"""Background thread that publishes, so that the training loop only copies weights; and its outcomes as text.

A newer request replaces a waiting one, so that a slow disk does not fall behind a fast training. No executor
of concurrent.futures does that, hence the queue of one request here.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from unitrain.errors import PublishRefused, RepositoryError, UnitrainError
from unitrain.publish.hold_back import HeldBack
from unitrain.publish.publisher import Publisher, Request
from unitrain.repository.manifest import Manifest
from unitrain.repository.ranking import marks_of
from unitrain.repository.verify import Check

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """Outcome of a request.

    Attributes:
        request: the request.
        manifest: manifest of the published version; None if it was not published.
        error: error that prevented publishing, or pruning afterwards.
        served: comparison of a server's outputs with the golden samples; reported in a second outcome.
    """

    request: Request
    manifest: Manifest | None
    error: Exception | None
    served: Check | None = None


class Worker:
    """Thread that publishes requests one by one; of the waiting requests, only the latest is kept.

    Args:
        publisher: publisher of the run.
        report: function that is called on this thread with each outcome; its errors are logged.
    """

    def __init__(self, publisher: Publisher, report: Callable[[Outcome], None]) -> None:
        self._publisher = publisher
        self._report = report
        self._waiting: Request | None = None
        self._working = False
        self._closed = False
        self._last_step: int | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="unitrain-publish", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Publish this request next, in place of a waiting one; a step is never published twice."""
        with self._changed:
            if self._closed or request.step == self._last_step:
                return
            self._last_step = request.step
            self._waiting = request
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until every submitted request is published or refused, and reported."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and not self._working)

    def finish(self) -> None:
        """Wait until every submitted request is published or refused, and stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._publisher.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting is not None or self._closed)
                request, self._waiting = self._waiting, None
                self._working = request is not None
            if request is None:
                return
            outcome = self._outcome(request)
            if isinstance(outcome.error, RepositoryError) and outcome.manifest is None:
                with self._changed:
                    self._last_step = None  # the disk refused it: the step may be retried
            self._report_outcome(outcome)
            if outcome.manifest is not None:
                served = self._publisher.check_served(outcome.manifest)
                if served is not None:
                    self._report_outcome(replace(outcome, served=served))
            with self._changed:
                self._working = False
                self._changed.notify_all()

    def _report_outcome(self, outcome: Outcome) -> None:
        try:
            self._report(outcome)
        except Exception:  # noqa: BLE001 - a failing receiver must not stop later versions
            _log.exception("the outcome of a publication could not be reported")

    def _outcome(self, request: Request) -> Outcome:
        try:
            manifest = self._publisher.publish(request)
        except Exception as error:  # noqa: BLE001 - no error of publishing stops the training
            return Outcome(request, None, error)
        try:
            self._publisher.prune()
        except UnitrainError as error:
            return Outcome(request, manifest, error)
        return Outcome(request, manifest, None)


def gate_of(error: Exception) -> str:
    """Return the gate that refused a version, or the class of the error that prevented publishing."""
    return error.gate if isinstance(error, PublishRefused) else type(error).__name__


def outcome_text(outcome: Outcome, *, again: bool = False) -> str:
    """Return an outcome as one line: the published version, or the gate that refused it and the reason.

    Args:
        outcome: the outcome.
        again: True omits the ways to publish a version that is held back.
    """
    if outcome.manifest is not None and outcome.served is not None:
        return served_text(outcome.manifest, outcome.served)
    if outcome.manifest is not None:
        text = published_text(outcome.manifest)
        return (
            text if outcome.error is None else f"{text}; older versions could not be pruned: {outcome.error}"
        )
    error = outcome.error or RuntimeError("no reason was given")
    if isinstance(error, HeldBack):
        mark = marks_of(error.comparison.outcome, best=False)
        step = f"step {outcome.request.step}{f' {mark}' if mark else ''}"
        return f"{step} is held back: {error.short if again else error}"
    return f"step {outcome.request.step} was not published: {gate_of(error)}: {error}"


def figures_of(outcome: Outcome) -> dict[str, float]:
    """Return an outcome's figures for TensorBoard: version, metric, and parity by output."""
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
    """Return the comparison of a server with the golden samples as one line."""
    outcome = {True: "is served", False: "is not served as published", None: "was not checked on the server"}
    return f"{manifest.model} version {manifest.version} {outcome[check.passed]}: {check.detail}"


def published_text(manifest: Manifest) -> str:
    """Return a published version as one line: step, metric with marks, and parity."""
    parts = [f"step {manifest.step}"]
    compared = manifest.comparison or {}
    if manifest.metric:
        previous = manifest.previous
        before = f" (version {previous['version']}: {previous['value']:.5g})" if previous else ""
        marks = marks_of(compared.get("outcome"), best=compared.get("best", False))
        parts.append(
            f"{manifest.metric.name} {manifest.metric.value:.5g}{f' {marks}' if marks else ''}{before}"
        )
    worst = {
        key: max((figures[key] for figures in manifest.parity.values()), default=0.0)
        for key in ("max_abs", "max_rel")
    }
    parts.append(f"parity {worst['max_abs']:.1e} absolute, {worst['max_rel']:.1e} relative")
    reason = compared.get("reason")
    if reason and not compared["same_run"]:
        parts.append(f"not comparable with version {compared['version']}, because {reason}")
    return f"published {manifest.model} version {manifest.version}: {', '.join(parts)}"
