"""`check`: all that is wrong with a settings file, and a dry run."""

from collections.abc import Sequence
from pathlib import Path

from unitrain.commands._parser import ArgumentParser
from unitrain.errors import UsageError


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "check",
        "List all faults of a settings file; without faults, try one batch of training and "
        "of validation, the hooks, the export and the folders, and leave nothing behind.",
        usage="python -m unitrain check --config F [--json] [--SETTING VALUE ...]",
        epilog="Exit code 0: `fit` would train with these settings, 2: it would not. Settings are given as to fit.",
    )
    parser.add_argument(
        "-c", "--config", type=Path, action="append", metavar="F",
        help="the settings file; given several times, a later one overrides an earlier one",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit code."""
    options, flags = _parser().parse_known_args(list(argv))
    if options.config is None:
        raise UsageError("check: --config F is required: the settings file to check (see check --help)")
    from unitrain.commands._output import print_fields, print_json
    from unitrain.terminal_output import say
    from unitrain.training.parsing.settings_check import check

    first, *over = options.config
    report = check(first, flags, over=over)
    if options.json:
        steps = [vars(step) for step in report.steps]
        print_json({"good": report.good, "settings": str(first), "faults": report.faults, "dry_run": steps})
        return 0 if report.good else 2
    print_fields((step.name, step.text if step.passed else f"FAILED: {step.text}") for step in report.steps)
    for fault in report.faults:
        say(f"- {fault}")
    wrong = len(report.faults) + sum(not step.passed for step in report.steps)
    verdict = f"{wrong} fault{'s' if wrong > 1 else ''}" if wrong else "nothing is wrong"
    say(f"{first}: {verdict}")
    return 0 if report.good else 2
