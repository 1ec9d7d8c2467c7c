"""Command line: a table of commands, signals, exit codes; only the chosen command's module is imported."""

import contextlib
import difflib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import FrameType
from typing import Any

from unitrain import __version__
from unitrain.atomic_files import full_disk
from unitrain.errors import Interrupted, UnitrainError
from unitrain.terminal_output import accept_any_text, open_standard_streams, say, say_error

_SIGNALS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGUSR1: signal.SIG_DFL,
}
"""Signals that end a command, with Python's default handlers."""

COMMANDS = {
    "new": ("unitrain.commands.new", "make a working project to start from"),
    "fit": ("unitrain.commands.fit", "train a model, and publish versions of it meanwhile"),
    "validate": ("unitrain.commands.evaluate:validate", "evaluate a run's checkpoint on the validation data"),
    "test": ("unitrain.commands.evaluate:test", "evaluate a run's checkpoint on the test data"),
    "check": ("unitrain.commands.check", "report all errors of a settings file, then try one batch"),
    "doctor": ("unitrain.commands.doctor", "check this machine, and report what to fix"),
    "export": ("unitrain.commands.export", "publish a run's checkpoint, through the same gates as fit"),
    "serve": ("unitrain.commands.serve", "start Triton on a model repository, and load new versions"),
    "predict": ("unitrain.commands.predict", "query a served model with one sample or a stream"),
    "models": ("unitrain.commands.models", "list, compare, verify and roll back published versions"),
    "runs": ("unitrain.commands.runs", "list and compare runs"),
    "tensorboard": ("unitrain.commands.tensorboard", "open TensorBoard on runs"),
}
"""Name → (module with `main(argv) -> exit code`, or `module:function`; purpose)."""


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items())
    return (
        "usage: python -m unitrain COMMAND [options]\n\n"
        "Train, monitor, evaluate, deploy and serve PyTorch models in one way.\n\n"
        f"{rows}\n\n"
        "COMMAND --help  print a command's options\n"
        "--version       print unitrain's version\n"
        "--debug         with a command: print the traceback of an error\n\n"
        "Exit codes: 0 good, 1 failed, 2 wrong usage or settings, 128 + n ended by signal n."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 good, 1 failed, 2 wrong usage or settings, 128 + n ended by signal n.
    """
    open_standard_streams()
    accept_any_text()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        with contextlib.suppress(OSError):  # a full disk, a reader that has exited
            print(_help(), flush=True)
        _drop_output()
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        say(f"unitrain {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"the commands are {', '.join(COMMANDS)}."
        say_error(f"there is no command `{name}`; {hint}")
        return 2
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in own
    if debug:
        arguments.remove("--debug")
    received: list[int] = []
    try:
        with _signals_raise(received):
            try:
                return _call(name, arguments)
            finally:
                sys.stdout.flush()  # here rather than at the interpreter's exit, where no error is handled
    except KeyboardInterrupt as error:
        return _stopped(getattr(error, "number", signal.SIGINT))
    except BrokenPipeError:
        _drop_output()  # the reader has exited (`| head`)
        return 141
    except UnitrainError as error:
        if debug:
            raise
        say_error(error)
        return error.exit_code
    except Exception as error:
        if debug:
            raise
        if received:  # an import that a signal interrupts may fail in any way
            return _stopped(received[0])
        say_error(_sentence(error))
        _drop_output()
        return 2 if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG else 1


def _call(name: str, arguments: list[str]) -> int:
    module, _, function = COMMANDS[name][0].partition(":")
    return int(getattr(import_module(module), function or "main")(arguments))


def _drop_output() -> None:
    """Discard unwritten output, which the interpreter would try to write again at its exit."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stopped(number: int) -> int:
    with contextlib.suppress(OSError):
        say(f"stopped by {signal.Signals(number).name}", to=sys.stderr)
    return 128 + number


def _sentence(error: Exception) -> str:
    full = full_disk(error)
    if full is not None:
        return f"the disk is full: {full}; free some space and try again"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    text = " ".join(str(error).split()) or "no message"
    return f"unexpected {type(error).__name__}: {text} (--debug shows where)"


@contextlib.contextmanager
def _signals_raise(received: list[int]) -> Iterator[None]:
    """Raise `Interrupted` on signals that would end the process silently, unless a command handles them.

    Args:
        received: list that receives the numbers of the signals.
    """
    main_pid = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != main_pid:  # a forked worker keeps the default behaviour
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        received.append(number)
        raise Interrupted(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, interrupt)
        for number, default in _SIGNALS.items()
        if signal.getsignal(number) is default
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
