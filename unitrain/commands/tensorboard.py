"""`tensorboard`: open TensorBoard on the experiments, on this machine only."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from unitrain.commands._parser import ArgumentParser, parse
from unitrain.errors import UnitrainError, UsageError
from unitrain.terminal_output import say

_HOST = "127.0.0.1"
_EXPERIMENTS_DIR = Path("experiments")
_LARGEST_PORT = 65535
_END_TIMEOUT_S = 5.0
_LINK = re.compile(r"http://\S+")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _EndedBySignal(BaseException):
    """Ctrl-C or SIGTERM: the regular way to end this command."""


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "tensorboard", "Open TensorBoard on all experiments or on chosen runs; Ctrl-C ends it."
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="folder of a run or an experiment, name of a run or its beginning, or `last`; default: all runs",
        default=[],
    )
    parser.add_argument(
        "--experiments-dir",
        type=Path,
        default=_EXPERIMENTS_DIR,
        metavar="DIR",
        help="folder of the experiments",
    )
    parser.add_argument(
        "--port", type=int, default=6006, help="port of the page; 0, or a port in use: a free one"
    )
    parser.add_argument("--no-browser", action="store_true", help="only print the link")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command until a signal ends it, and return its exit code."""
    options = parse(_parser(), argv)
    if not 0 <= options.port <= _LARGEST_PORT:
        raise UsageError(f"tensorboard: --port expects 0 to {_LARGEST_PORT}, got {options.port}")
    with (
        contextlib.suppress(_EndedBySignal),
        _signals_end(),
        _log_dir(options.runs, options.experiments_dir) as path,
    ):
        _run(path, _free_port(options.port), browser=not options.no_browser)
    return 0


@contextlib.contextmanager
def _log_dir(runs: Sequence[str], experiments_dir: Path) -> Iterator[Path]:
    """Yield the folder that TensorBoard reads.

    Several runs are links in a temporary folder, since `--logdir_spec` turns the Projector off.
    """
    chosen = [_folder(text, experiments_dir) for text in runs]
    if not chosen:
        if not experiments_dir.is_dir():
            shipped = _shipped_runs() if experiments_dir == _EXPERIMENTS_DIR else None
            if shipped:
                say(f"there is no folder {experiments_dir} yet; this is the run in {shipped}")
                experiments_dir = shipped
            else:
                say(f"there is no folder {experiments_dir} yet; runs show up as they are made")
        yield experiments_dir
    elif len(chosen) == 1:
        yield chosen[0]
    else:
        with tempfile.TemporaryDirectory(prefix="unitrain-tensorboard-") as links:
            for path in dict.fromkeys(chosen):
                link = Path(links, path.parent.name, path.name)
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(path)
            yield Path(links)


def _shipped_runs() -> Path | None:
    """Return the folder of a run that an example in the working folder has; None without one."""
    return next(iter(sorted(Path("examples").glob("*/pretrained_run"))), None)


def _folder(text: str, experiments_dir: Path) -> Path:
    from unitrain.runs import find_run

    for path in (Path(text), experiments_dir / text):
        if path.is_dir():
            return path.resolve()
    return find_run(text, experiments_dir)


def _free_port(port: int) -> int:
    """Return the port, or 0 if it is in use."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            say(f"port {port} can't be had ({error.strerror}): taking a free one")
            return 0
    return port


def _run(log_dir: Path, port: int, *, browser: bool) -> None:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(log_dir), "--host", _HOST]
    # In a separate process group Ctrl-C reaches it once, through this process.
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        _follow(process, browser=browser)
    finally:
        _end(process)


def _follow(process: "subprocess.Popen[str]", *, browser: bool) -> None:
    """Read TensorBoard's output until it exits, which it does by itself only after an error.

    Raises:
        UnitrainError: TensorBoard has exited.
    """
    last_lines: deque[str] = deque(maxlen=5)
    for line in process.stderr or ():
        last_lines.append(line.strip())
        link = _LINK.search(line) if line.startswith("TensorBoard ") else None
        if link:
            say(f"TensorBoard: {link[0]} (Ctrl-C ends it)")
            if browser and _has_display():
                import webbrowser

                webbrowser.open(link[0])
    code = process.wait()
    raise UnitrainError(
        f"TensorBoard ended with exit code {code}: {' '.join(filter(None, last_lines)) or 'no word'}"
    )


def _has_display() -> bool:
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _end(process: "subprocess.Popen[str]") -> None:
    """End the server and its child processes, for example its data loader."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_TIMEOUT_S)
            return


@contextlib.contextmanager
def _signals_end() -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        # A second signal must not interrupt the clean-up.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise _EndedBySignal

    before = {each: signal.signal(each, end) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
