"""The thread that publishes, so that the training loop only ever clones weights.

concurrent.futures has no executor in which a newer request takes the place of one that has not begun,
which is what keeps a slow disk from falling behind a fast training; hence the hand-made queue of one.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from unitrain.errors import PublishRefused, RepositoryError, UnitrainError
from unitrain.publish.policy import HeldBack
from unitrain.publish.publisher import Publisher, Request
from unitrain.repository.manifest import Manifest
from unitrain.repository.ranking import marks_of
from unitrain.repository.verify import Check

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a request: a manifest, or the error that kept it from being published.

    Attributes:
        served: of a published version, how the server that the settings name answered; told after the rest.
    """

    request: Request
    manifest: Manifest | None
    error: Exception | None
    served: Check | None = None


class Worker:
    """Publishes requests one after the other; of those that wait, only the latest.

    Args:
        publisher: does the work.
        report: called on the worker's thread with each outcome; errors never reach the training.
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
        """Publish this next; one that still waits is dropped, and the same step is never published twice."""
        with self._changed:
            if self._closed or request.step == self._last_step:
                return
            self._last_step = request.step
            self._waiting = request
            self._changed.notify_all()

    def wait(self) -> None:
        """Return once everything submitted is published or refused, and reported."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None and not self._working)

    def finish(self) -> None:
        """Return once everything submitted is published or refused, and end the thread."""
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
                    self._last_step = None  # the disk refused: it may be tried again
            self._tell(outcome)
            if outcome.manifest is not None:
                served = self._publisher.check_served(outcome.manifest)
                if served is not None:
                    self._tell(replace(outcome, served=served))
            with self._changed:
                self._working = False
                self._changed.notify_all()

    def _tell(self, outcome: Outcome) -> None:
        try:
            self._report(outcome)
        except Exception:  # noqa: BLE001 - whoever listens has failed; later versions must come all the same
            _log.exception("the outcome of a publication could not be told")

    def _outcome(self, request: Request) -> Outcome:
        try:
            manifest = self._publisher.publish(request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the training goes on
            return Outcome(request, None, error)
        try:
            self._publisher.prune()
        except UnitrainError as error:
            return Outcome(request, manifest, error)
        return Outcome(request, manifest, None)


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
