"""Options and output that the commands of both drivers share."""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from unitrain.errors import UnitrainError

FOLDER = Path("examples") / "hyperparameter_search"


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help formatter that adds the defaults."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def option_parser(module: str, document: str) -> argparse.ArgumentParser:
    """A parser whose description is the module's docstring; `module` is its name in this folder."""
    return argparse.ArgumentParser(
        prog=f"python -m examples.hyperparameter_search.{module}",
        description=document.partition("`: ")[2].strip(),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )


def add_common_options(parser: argparse.ArgumentParser, *, study: str) -> None:
    """The options that both have; `study` is the default file's name."""
    parser.add_argument(
        "--config",
        type=Path,
        default=FOLDER / "settings.yaml",
        metavar="FILE",
        help="settings of every trial",
    )
    parser.add_argument(
        "--space", type=Path, metavar="FILE", help="what is varied; default: space.yaml beside the settings"
    )
    parser.add_argument(
        "--study",
        type=Path,
        metavar="FILE",
        help=f"the search itself; default: experiments/EXPERIMENT.search/{study}",
    )
    parser.add_argument("--trials", type=needed_number, default=20, metavar="N", help="trials in all")
    parser.add_argument("--seed", type=int, default=0, help="of the search")
    parser.add_argument(
        "--publish", action=argparse.BooleanOptionalAction, default=True, help="publish the best at the end"
    )
    parser.add_argument(
        "--model-repository", type=Path, metavar="DIR", help="where to; default: as the settings have it"
    )


def needed_number(text: str) -> int:
    """An option's number, 1 or more."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return number


def run_command(main: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """A command's exit code; an error of ours is one sentence, Ctrl-C between two trials no traceback."""
    try:
        return main(argv)
    except UnitrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def publish_run(run_dir: Path, repository: Path | None, model: str) -> int:
    """Publish a run's best checkpoint through the gates that every version passes; the exit code."""
    command = [sys.executable, "-m", "unitrain", "export", "--run", str(run_dir), "--model", model]
    if repository is not None:
        command += ["--model-repository", str(repository)]
    return subprocess.run(command, check=False).returncode
