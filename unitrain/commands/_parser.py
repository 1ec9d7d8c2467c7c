"""Argument parser of all commands that need no torch, and the options that several commands share.

It is argparse with these changes: options are spelled with hyphens, and underscores are accepted; options
can't be abbreviated; an error is one sentence with the nearest option; the usage line is short.
"""

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from unitrain.errors import UsageError


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Print a default unless it is None, False or empty, and options and their help on one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        no_default = action.default is None or action.default is False or action.default == []
        return action.help if no_default else super()._get_help_string(action)


def _path(text: str) -> Path:
    """Return a path; an empty one is most likely a variable of the shell that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; give a path")
    return Path(text)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with one-sentence errors, which it raises as `UsageError`.

    Args:
        command: name of the command.
        description: purpose of the command, one sentence.
        options: further arguments of argparse's parser.

    Example:
        >>> parser = ArgumentParser("serve", "Serve models.")
        >>> _ = parser.add_argument("--grpc-port", type=int)
        >>> parse(parser, ["--grpc_port", "8001"])
        Namespace(grpc_port=8001)
    """

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=f"python -m unitrain {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
            **options,
        )
        self.register("type", Path, _path)

    def format_help(self) -> str:
        """Return the help, with a usage line of the arguments that are required."""
        if self.usage is None:
            forms = {None: "{}", "?": "[{}]", "*": "[{} ...]", "+": "{} ..."}
            words = [
                forms[action.nargs].format(action.metavar or action.dest)  # type: ignore[index]
                for action in self._get_positional_actions()
            ]
            words += [
                f"{action.option_strings[-1]} {action.metavar or action.dest.upper()}"
                for action in self._get_optional_actions()
                if action.required
            ]
            self.usage = " ".join(["%(prog)s", *words, "[options]"])
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments, after replacing underscores in the names of long options by hyphens."""
        spellings = {o.replace("_", "-"): o for o in self._option_string_actions if o.startswith("--")}

        def spell(word: str) -> str:
            name, equals, value = word.partition("=")
            return spellings.get(name.replace("_", "-"), name) + equals + value if name[:2] == "--" else word

        words = list(args or [])
        end = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([spell(word) for word in words[:end]] + words[end:], namespace)

    def error(self, message: str) -> NoReturn:
        """Raise the error as one sentence, with the nearest option if one was misspelled."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            options = [o for o in self._option_string_actions if o.startswith("--")]
            near = difflib.get_close_matches(unknown[1], options, n=1)
            message = f"there is no option {unknown[1]}" + (f"; did you mean {near[0]}?" if near else "")
        raise UsageError(f"{self.prog.removeprefix('python -m unitrain ')}: {message} (see --help)")


def add_experiments_dir(parser: ArgumentParser, default: Path | None = Path("experiments")) -> None:
    """Add `--experiments-dir`, with a default folder; None: the project's `experiments`."""
    text = "folder of the experiments" + ("" if default else " (default: experiments of the project)")
    parser.add_argument("--experiments-dir", type=Path, default=default, metavar="DIR", help=text)


def add_checkpoint(parser: ArgumentParser, *, required: bool = False) -> None:
    """Add `--run`, `--checkpoint`, `--weights` and `--trust`, which name the weights of a run."""
    parser.add_argument(
        "--run",
        required=required,
        metavar="RUN",
        help="run: its folder, its name or the beginning of its name, or `last`",
    )
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="checkpoint of the run"
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="averaged (ema) or raw weights (default: ema if the run has them)",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import the run's code from any folder in its run.json, not only from this project or near the run",
    )


def parse(parser: ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments; `--help` prints the help and exits with 0."""
    return parser.parse_args(list(argv))
