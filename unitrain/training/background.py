"""Work that the training does not wait for, unless it falls behind."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from unitrain.training.console import Console


class Background:
    """A thread that does one piece of work at a time; who brings the next waits until the last is done.

    What fails is told on the console, once a reason, and never ends the training.

    Args:
        name: what the work is, in the warning: "the embeddings".
    """

    def __init__(self, name: str, console: Console) -> None:
        self._name = name
        self._console = console
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._told: set[str] = set()

    def run(self, work: Callable[[], None]) -> None:
        """Begin the work, once the work before is done."""
        self.wait()
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="unitrain-background")
        self._pending = self._thread.submit(work)

    def wait(self) -> None:
        """Return when nothing is being done."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:  # noqa: BLE001 - a picture is no reason to end a training
            reason = f"{type(error).__name__}: {error}"
            if reason not in self._told:
                self._told.add(reason)
                self._console.warn(f"{self._name} could not be written: {reason}")

    def finish(self) -> None:
        """Return when all is done, and end the thread."""
        self.wait()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
