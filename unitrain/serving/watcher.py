"""Watcher of a model repository: find what has changed on disk and have it served."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from unitrain.errors import RepositoryError
from unitrain.repository import Repository
from unitrain.serving.admin_client import Admin, ServerGone
from unitrain.serving.candidate import Candidates
from unitrain.serving.events import Reporter
from unitrain.serving.model_health import ModelHealth, Processes
from unitrain.serving.model_manager import ModelManager
from unitrain.serving.servable_versions import ModelFiles, scan

SCAN_INTERVAL_S = 0.05
_SCAN_DUTY = 20
"""A scan of the disk is repeated after this many times the time that it took, or later."""
_MAX_SCAN_INTERVAL_S = 1.0
_PARALLEL_MODELS = 8
"""Number of models that are loaded or probed at the same time."""


class _Model:
    """One model with its two sides."""

    def __init__(self, manager: ModelManager, health: ModelHealth) -> None:
        self.manager = manager
        self.health = health

    def forget(self) -> None:
        """Start again with a new Triton."""
        self.manager.forget()
        self.health.forget()

    def update(self, files: ModelFiles | None, admin: Admin, *, settled: bool) -> None:
        """Load what has changed if it is written completely, then check the health of what is served."""
        try:
            if settled:
                self.manager.reconcile(files, admin)
            self.health.check(admin)
        except ServerGone:  # the next Triton loads everything again
            return


class Watcher:
    """Keeps the models of a repository served; it outlives the Triton processes that serve them.

    Each model is updated by its own calls, one at a time. A model that takes a minute to load, or does not
    answer, delays no other.

    Args:
        repository: model repository.
        reporter: log of events.
        allowed_backends: backends that the user allowed in addition to `onnxruntime`.
        explain: function that returns the reason for a failure to load, from the model's name and Triton's
            answer.
        processes: function that returns the processes of all models.
        candidates: verification before a version is loaded; None: none.
    """

    def __init__(
        self,
        repository: Repository,
        reporter: Reporter,
        *,
        allowed_backends: frozenset[str] = frozenset(),
        explain: Callable[[str, str], str] = lambda _model, words: words,
        processes: Callable[[], Processes] = dict,
        candidates: Candidates | None = None,
    ) -> None:
        self._repository = repository
        self._reporter = reporter
        self._allowed_backends = allowed_backends
        self._explain = explain
        self._processes = processes
        self._candidates = candidates
        self._models: dict[str, _Model] = {}
        self._unreadable = ""

    def run(self, admin: Admin, stop: threading.Event) -> None:
        """Watch until `stop` is set.

        Raises:
            RestartNeeded: a model does not answer, and reloading has not helped.
        """
        for model in self._models.values():
            model.forget()
        calls: dict[str, Future[None]] = {}
        before: dict[str, ModelFiles] = {}
        with ThreadPoolExecutor(_PARALLEL_MODELS, "model") as pool:
            try:
                while not stop.is_set():
                    began = time.monotonic()
                    now = self._scan()
                    took_s = time.monotonic() - began
                    if now is not None:
                        self._submit(now, before, calls, pool, admin)
                        before = now
                    stop.wait(max(SCAN_INTERVAL_S, min(_SCAN_DUTY * took_s, _MAX_SCAN_INTERVAL_S)))
            finally:
                admin.close()  # calls in flight end, and the pool with them

    def _submit(
        self,
        now: dict[str, ModelFiles],
        before: dict[str, ModelFiles],
        calls: dict[str, Future[None]],
        pool: ThreadPoolExecutor,
        admin: Admin,
    ) -> None:
        # Files that differ between two scans are still being written.
        unchanged = {name: files for name, files in now.items() if before.get(name) == files}
        for name in sorted(set(self._models) | set(unchanged)):
            call = calls.get(name)
            if call is not None and not call.done():
                continue
            if call is not None:
                call.result()
            if name not in self._models:
                self._models[name] = self._new_model(name)
            settled = name in unchanged or (name not in now and name not in before)
            calls[name] = pool.submit(self._models[name].update, unchanged.get(name), admin, settled=settled)

    def _new_model(self, name: str) -> _Model:
        manager = ModelManager(
            name,
            self._repository,
            self._reporter,
            allowed_backends=self._allowed_backends,
            explain=self._explain,
            candidates=self._candidates,
        )
        return _Model(manager, ModelHealth(manager, self._repository, self._reporter, self._processes))

    def _scan(self) -> dict[str, ModelFiles] | None:
        try:
            found = scan(self._repository)
        except RepositoryError as error:
            if str(error) != self._unreadable:
                self._reporter.report(
                    "unreadable", f"{error}; loaded models are still served", reason=str(error)
                )
            self._unreadable = str(error)
            return None
        self._unreadable = ""
        return found
