"""The watcher: sees what changes in a repository and has it served."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from unitrain.errors import RepositoryError
from unitrain.repository import Repository
from unitrain.serving.admin_client import Admin, ServerGone
from unitrain.serving.candidate import Candidates
from unitrain.serving.events import Reporter
from unitrain.serving.model_folder import ModelFiles, scan
from unitrain.serving.model_manager import ModelKeeper, Processes, RestartNeeded

LOOK_EVERY_S = 0.05
_LOOK_SHARE = 20
"""A look at the disk is repeated no sooner than this many times what it took."""
_AT_ONCE = 8
"""Models that are loaded at the same time."""


class Watcher:
    """Keeps the models of a repository served; it outlives the Triton processes that serve them.

    Each model is attended to by itself, one call at a time: one that takes a minute to load, or does not
    answer, holds up no other.
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
        self._keepers: dict[str, ModelKeeper] = {}
        self._unreadable = ""

    def run(self, admin: Admin, stop: threading.Event) -> None:
        """Watch until `stop` is set; a server that is gone is waited for.

        Raises:
            RestartNeeded: a model does not answer and can't be brought back.
        """
        for keeper in self._keepers.values():
            keeper.forget_served()
        calls: dict[str, Future[None]] = {}
        before: dict[str, ModelFiles] = {}
        with ThreadPoolExecutor(_AT_ONCE, "keeper") as pool:
            try:
                while not stop.is_set():
                    began = time.monotonic()
                    now = self._look()
                    took = time.monotonic() - began
                    if now is not None:
                        self._submit(now, before, calls, pool, admin)
                        before = now
                    stop.wait(max(LOOK_EVERY_S, min(_LOOK_SHARE * took, 1.0)))
            finally:
                admin.close()  # what is under way ends, and the pool with it

    def _submit(
        self,
        now: dict[str, ModelFiles],
        before: dict[str, ModelFiles],
        calls: dict[str, Future[None]],
        pool: ThreadPoolExecutor,
        admin: Admin,
    ) -> None:
        # What differs between two looks is still being written.
        still = {name: files for name, files in now.items() if before.get(name) == files}
        for name in sorted(set(self._keepers) | set(still)):
            call = calls.get(name)
            if call is not None and not call.done():
                continue
            if call is not None:
                call.result()
            keeper = self._keepers.get(name)
            if keeper is None:
                keeper = ModelKeeper(
                    name,
                    self._repository,
                    self._reporter,
                    allowed_backends=self._allowed_backends,
                    explain=self._explain,
                    processes=self._processes,
                    candidates=self._candidates,
                )
                self._keepers[name] = keeper
            written = name in still or (name not in now and name not in before)
            calls[name] = pool.submit(_attend, keeper, still.get(name), admin, written=written)

    def _look(self) -> dict[str, ModelFiles] | None:
        try:
            found = scan(self._repository)
        except RepositoryError as error:
            if str(error) != self._unreadable:
                self._reporter.tell("unreadable", f"{error}; what is loaded serves on", reason=str(error))
            self._unreadable = str(error)
            return None
        self._unreadable = ""
        return found


def _attend(keeper: ModelKeeper, files: ModelFiles | None, admin: Admin, *, written: bool) -> None:
    try:
        if written:
            keeper.reconcile(files, admin)
        keeper.probe(admin)
    except ServerGone:  # the next Triton is told anew
        return


__all__ = ["RestartNeeded", "Watcher"]
