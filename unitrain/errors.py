"""Hierarchy of all errors that unitrain raises on purpose.

UnitrainError                exit 1: correct usage, but it failed
├── UsageError               exit 2: an option, a name or an argument is wrong
│   ├── SettingsError        the settings file, a key or a value is wrong
│   ├── HookError            the code of the module or the data module does not fit the tool
│   └── ExportError          the model can't be exported to ONNX
├── RunError                 a run folder is missing, locked or unreadable
├── RepositoryError          the model repository can't be read or written
├── PublishRefused           a gate refused a version
├── ServingError             Triton was not found, did not start, or died
└── ClientError              there is no server, or no such model
    ├── RequestError         the server refused or failed a request
    └── DataError            a source or sink is wrong: missing file, columns, shape, dtype, NaN
Interrupted                  exit 128 + n: signal n, which no command handled; a KeyboardInterrupt

A message is one sentence: `where: what went wrong; what to do`.
"""

from typing import ClassVar


class UnitrainError(Exception):
    """Error with a message that the user can act on.

    Attributes:
        exit_code: exit code of the command.

    Example:
        >>> try:
        ...     load_run("no such run")
        ... except UnitrainError as error:
        ...     print(type(error).__name__, error.exit_code)
        RunError 1
    """

    exit_code: ClassVar[int] = 1


class UsageError(UnitrainError):
    """An option, a name or an argument is wrong."""

    exit_code: ClassVar[int] = 2


class SettingsError(UsageError):
    """The settings file, one of its keys, or one of its values is wrong."""


class HookError(UsageError):
    """The code of a module or data module does not meet the tool's requirements."""


class ExportError(UsageError):
    """The model can't be exported to an ONNX graph with the same outputs as in torch."""


class RunError(UnitrainError):
    """A run folder is missing, locked by another process, or unreadable."""


class RepositoryError(UnitrainError):
    """The model repository can't be read or written, or has another model of that name."""


class PublishRefused(UnitrainError):  # noqa: N818 - a refusal is an outcome, not an error of the program
    """A gate refused a version.

    Attributes:
        gate: name of the gate.
    """

    def __init__(self, gate: str, message: str) -> None:
        super().__init__(message)
        self.gate = gate


class ServingError(UnitrainError):
    """Triton was not found, did not start, or died."""


class ClientError(UnitrainError):
    """The server or the model could not be reached."""


class RequestError(ClientError):
    """The server refused a request, or did not answer it.

    Attributes:
        kind: `refused` by the server, `deadline` (no answer in time), `unavailable` (no server for too long), or
            `stopped` (the stream ended before the answer).
    """

    def __init__(self, message: str, kind: str = "refused") -> None:
        super().__init__(message)
        self.kind = kind


class Interrupted(KeyboardInterrupt):
    """A signal ended the command.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class DataError(ClientError):
    """A source or sink is wrong: missing file, columns, shape, dtype, or NaN."""
