"""The watcher: sees what changes in a repository and has it served."""

import threading
import time

from unitrain.errors import RepositoryError
from unitrain.repository import Repository
from unitrain.serving.admin import Admin, ServerGone
from unitrain.serving.keeper import ModelKeeper, RestartNeeded
from unitrain.serving.report import Reporter
from unitrain.serving.scan import ModelFiles, scan

LOOK_EVERY_S = 0.1
_LOOK_SHARE = 20
"""A look at the disk is repeated no sooner than this many times what it took."""


class Watcher:
    """Keeps the models of a repository served; it outlives the Triton processes that serve them."""

    def __init__(self, repository: Repository, reporter: Reporter) -> None:
        self._repository = repository
        self._reporter = reporter
        self._keepers: dict[str, ModelKeeper] = {}
        self._unreadable = ""

    def run(self, admin: Admin, stop: threading.Event) -> None:
        """Watch until `stop` is set; a server that is gone is waited for.

        Raises:
            RestartNeeded: a model does not answer and can't be brought back.
        """
        for keeper in self._keepers.values():
            keeper.forget_served()
        before: dict[str, ModelFiles] = {}
        while not stop.is_set():
            began = time.monotonic()
            now = self._look()
            took = time.monotonic() - began
            if now is not None:
                # What differs between two looks is still being written.
                still = {name: files for name, files in now.items() if before.get(name) == files}
                self._attend(now, still, admin, stop)
                before = now
            stop.wait(max(LOOK_EVERY_S, min(_LOOK_SHARE * took, 1.0)))

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

    def _attend(
        self, now: dict[str, ModelFiles], still: dict[str, ModelFiles], admin: Admin, stop: threading.Event
    ) -> None:
        for name in sorted(set(self._keepers) | set(still)):
            if stop.is_set():
                return
            keeper = self._keepers.setdefault(name, ModelKeeper(name, self._repository, self._reporter))
            try:
                if name in still or name not in now:
                    keeper.reconcile(still.get(name), admin)
                keeper.probe(admin)
            except ServerGone:
                return


__all__ = ["RestartNeeded", "Watcher"]
