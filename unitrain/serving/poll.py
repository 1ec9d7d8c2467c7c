"""What a Triton that polls the repository by itself has loaded, told as the watcher tells it."""

import contextlib
import threading

from unitrain.errors import ServingError
from unitrain.serving.admin_client import Admin
from unitrain.serving.events import Reporter

LOOK_EVERY_S = 0.5


class PollObserver:
    """Asks Triton for its index of models again and again, and tells what has changed."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._ready: dict[str, list[int]] = {}
        self._failed: dict[tuple[str, str], str] = {}

    def run(self, admin: Admin, stop: threading.Event) -> None:
        """Observe until `stop` is set; a server that is gone is waited for."""
        self._ready = {}
        while not stop.is_set():
            with contextlib.suppress(ServingError):  # it is ending, or not there yet
                self._tell(admin.versions())
            stop.wait(LOOK_EVERY_S)

    def _tell(self, index: list[tuple[str, str, str, str]]) -> None:
        ready: dict[str, list[int]] = {}
        failed: dict[tuple[str, str], str] = {}
        for model, version, state, reason in index:
            if state == "READY" and version.isdecimal():
                ready.setdefault(model, []).append(int(version))
            elif reason and reason != "unloaded":
                failed[model, version] = reason
        for model in sorted(ready.keys() | self._ready.keys()):
            versions = sorted(ready.get(model, []))
            if versions == self._ready.get(model, []):
                continue
            if versions:
                text = f"{model} serves version{'s' * (len(versions) > 1)} {', '.join(map(str, versions))}"
                self._reporter.tell("loaded", text, model=model, versions=versions)
            else:
                self._reporter.tell("unloaded", f"{model} is no longer served", model=model, reason="")
        for (model, version), reason in failed.items():
            if self._failed.get((model, version)) != reason:
                shown = " ".join(reason.split())
                what = f"{model} version {version}" if version else model
                number = int(version) if version.isdecimal() else None
                text = f"{what} can't be loaded: {shown}"
                self._reporter.tell("failed", text, model=model, version=number, reason=shown)
        self._ready = {model: sorted(versions) for model, versions in ready.items()}
        self._failed = failed
