"""The thread that publishes, so that the training loop only ever clones weights.

concurrent.futures has no executor in which a newer request takes the place of one that has not begun,
which is what keeps a slow disk from falling behind a fast training; hence the hand-made queue of one.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from unitrain.errors import RepositoryError, UnitrainError
from unitrain.manifest import Manifest
from unitrain.publish.publisher import Publisher, Request
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
