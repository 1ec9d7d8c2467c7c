"""`unitrain.serving.Server` for tests, and a Triton that looks like a native one."""

import signal
from pathlib import Path

from unitrain.serving import Server
from unitrain.serving.triton.distribution import find_triton


class TritonServer(Server):
    """A server with its log beside the test's files."""

    def __init__(self, repository: Path, *, log: Path, options: tuple[str, ...] = ()) -> None:
        super().__init__(repository, log_file=log, options=options)

    def stop_by(self, number: signal.Signals) -> int | None:
        """End it by a signal and return its exit code."""
        return self._end(number, timeout_s=60)


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
