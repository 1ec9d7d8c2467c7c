"""`doctor`: check this machine, and print how to fix what is missing."""

import dataclasses
from collections.abc import Sequence

from unitrain.commands._parser import ArgumentParser, parse


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "doctor",
        "Check this machine and this environment: Python, packages, torch and GPU, disk, shared memory, Triton; "
        "and print how to fix what is missing.",
    )
    parser.add_argument("--no-start", action="store_true", help="do not start Triton")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command; return 0 if training works here, 1 if it does not."""
    options = parse(_parser(), argv)
    from unitrain import __version__
    from unitrain.commands._output import print_json
    from unitrain.doctor import diagnose
    from unitrain.terminal_output import say

    findings = diagnose(start_triton=not options.no_start)
    bad = any(finding.status == "bad" for finding in findings)
    if options.json:
        listed = [dataclasses.asdict(finding) for finding in findings]
        print_json({"unitrain": __version__, "ok": not bad, "findings": listed})
        return int(bad)
    print(f"unitrain {__version__}")
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        say(f"{finding.status:<5} {finding.name:<{width}}  {finding.text}")
        if finding.todo:
            say(f"{'':<5} {'':<{width}}  -> {finding.todo}")
    return int(bad)
