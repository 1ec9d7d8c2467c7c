"""`unitrain.serving.Server` for tests, and a Triton that looks like a native one."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from time_limits import LIMIT_S

from unitrain.serving import Server
from unitrain.serving.triton.distribution import find_triton


class TritonServer(Server):
    """A server with its log beside the test's files, and the time limits of tests."""

    def __init__(self, repository: Path, *, log: Path, options: tuple[str, ...] = ()) -> None:
        super().__init__(repository, log_file=log, options=options, timeout_s=LIMIT_S)
        self.log = log

    def wait_for(self, model: str, version: int | None = None, timeout_s: float = LIMIT_S) -> int:
        """Wait as `Server.wait_for` does, with the time limit of the tests."""
        return super().wait_for(model, version, timeout_s)

    def wait_for_event(
        self,
        name: str,
        timeout_s: float = LIMIT_S,
        accept: Callable[[dict[str, Any]], bool] = lambda _event: True,
        *,
        after: int = 0,
    ) -> dict[str, Any]:
        """Wait as `Server.wait_for_event` does, with the time limit of the tests."""
        return super().wait_for_event(name, timeout_s, accept, after=after)

    def stop_by(self, number: signal.Signals) -> int | None:
        """End it by a signal and return its exit code."""
        return self._end(number, timeout_s=LIMIT_S)


def native_tritonserver(folder: Path, backends_dir: Path | None = None) -> Path:
    """A `tritonserver` in `folder`: the wheel's, set up as a native one is, which knows its backends by itself."""
    wheel = find_triton()
    program = folder / "tritonserver"
    folder.mkdir(parents=True)
    exports = "".join(f"export {key}='{wheel.environment[key]}'\n" for key in ("LD_LIBRARY_PATH", "PATH"))
    program.write_text(
        f'#!/bin/sh\n{exports}exec {wheel.program} --backend-directory={backends_dir or wheel.backends_dir} "$@"\n'
    )
    program.chmod(0o755)
    return program
