"""Every error that unitrain raises on purpose.

UnitrainError                exit 1: it was asked rightly and could not be done
├── UsageError               exit 2: a flag, a name or an argument is wrong
│   ├── SettingsError        the settings file or its values
│   ├── HookError            the module's or the data module's code does not fit together
│   └── ExportError          the model can't be turned into an ONNX graph
├── RunError                 a run folder: missing, locked, unreadable
├── RepositoryError          the model repository: unwritable, unreadable, conflicting
├── PublishRefused           a gate refused a version
├── ServingError             Triton: not found, not startable, died
└── ClientError              no server, no such model
    ├── RequestError         the server refused or failed a request
    └── DataError            a source or a sink: missing file, wrong columns, shape, dtype, NaN
Interrupted                  exit 128 + n: signal n came where nothing else handles it; a KeyboardInterrupt

A message is one sentence: where, what was expected, what was got, what to do.
"""

from typing import ClassVar


class UnitrainError(Exception):
    """Base class of unitrain's errors; `exit_code` is the exit code of the command.

    Example:
        >>> try:
        ...     load_run("no such run")
        ... except UnitrainError as error:
        ...     print(type(error).__name__, error.exit_code)
        RunError 1
    """

    exit_code: ClassVar[int] = 1


class UsageError(UnitrainError):
    """A flag, a name or an argument is wrong."""

    exit_code: ClassVar[int] = 2


class SettingsError(UsageError):
    """The settings file, one of its keys, or one of its values is wrong."""


class HookError(UsageError):
    """A module's or data module's own code does not fit what the tool needs of it."""


class ExportError(UsageError):
    """The model can't be turned into an ONNX graph that answers as torch does."""


class RunError(UnitrainError):
    """A run folder is missing, locked by another process, or unreadable."""


class RepositoryError(UnitrainError):
    """The model repository can't be read or written, or holds something else under that name."""


class PublishRefused(UnitrainError):  # noqa: N818 - a refusal is an outcome, not an error of the program
    """A gate refused a version; `gate` is its name."""

    def __init__(self, gate: str, message: str) -> None:
        super().__init__(message)
        self.gate = gate


class ServingError(UnitrainError):
    """Triton could not be found, started or kept alive."""


class ClientError(UnitrainError):
    """The server or the model could not be reached."""


class RequestError(ClientError):
    """The server refused a request or failed to answer it.

    Attributes:
        kind: refused (by the server), deadline (no answer in time) or unavailable (no server for too long).
    """

    def __init__(self, message: str, kind: str = "refused") -> None:
        super().__init__(message)
        self.kind = kind


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class DataError(ClientError):
    """A source or a sink: missing file, wrong columns, shape, dtype, or NaN."""
