"""The argument parser of the commands that need no torch.

argparse, with what our commands promise: a hyphen and an underscore are the same, abbreviations are
refused, and an error is one sentence with the nearest option.
"""

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from unitrain.errors import UsageError


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tells the defaults that tell something: not None, False or nothing at all."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default == []
        return action.help if silent else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser with one-sentence errors, raised as `UsageError` rather than printed."""

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=f"python -m unitrain {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
            **options,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse's, after every long option's underscores have become hyphens or the reverse."""
        spelled = {o.replace("_", "-"): o for o in self._option_string_actions if o.startswith("--")}

        def spell(word: str) -> str:
            name, equals, value = word.partition("=")
            return spelled.get(name.replace("_", "-"), name) + equals + value if name[:2] == "--" else word

        words = list(args or [])
        cut = words.index("--") if "--" in words else len(words)
        return super().parse_known_args([spell(w) for w in words[:cut]] + words[cut:], namespace)

    def error(self, message: str) -> NoReturn:
        """Raise the error as one sentence, with the nearest option where one was mistyped."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            options = [o for o in self._option_string_actions if o.startswith("--")]
            near = difflib.get_close_matches(unknown[1], options, n=1)
            message = f"there is no option {unknown[1]}" + (f"; did you mean {near[0]}?" if near else "")
        raise UsageError(f"{self.prog.removeprefix('python -m unitrain ')}: {message} (see --help)")


def add_experiments_dir(parser: ArgumentParser, default: Path | None = Path("experiments")) -> None:
    """Add `--experiments_dir`; None: the project's."""
    told = (
        "folder of the experiments" if default else "where a run's name is looked for; default: the project's"
    )
    parser.add_argument("--experiments_dir", type=Path, default=default, metavar="DIR", help=told)


def add_checkpoint(parser: ArgumentParser, *, required: bool = False) -> None:
    """Add `--run`, `--checkpoint` and `--weights`, which name weights of a run."""
    parser.add_argument(
        "--run", required=required, metavar="RUN", help="a folder, a run's name or its beginning, or `last`"
    )
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="which of the run's checkpoints"
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="the averaged ones or the raw ones; default: averaged if the run has them",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="import the run's code from wherever its run.json says, not only from this project or around the run",
    )


def parse(parser: ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The parsed arguments; `--help` prints and exits 0."""
    return parser.parse_args(list(argv))
