"""Every pattern of the corpus of foreign modules: trained, published, and held against the live module.

python benchmarks/module_corpus.py [--json] [--only NAME,NAME] [--group GROUP]

The table has a row a pattern; the totals come last. The exit code is 1 where a verdict is a defect, or not the
one that the pattern declares.
"""

import argparse
import collections
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

# One thread, as the tests have: the modules are tiny.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from corpus import load_all
from corpus.case import CASES, Case
from corpus.judge import Verdict, judge, one_export_process


def judge_in_scratch(case: Case) -> Verdict:
    """The verdict on a pattern, trained in a folder that is removed."""
    with tempfile.TemporaryDirectory(prefix="unitrain-corpus-") as folder:
        Path(folder, "pyproject.toml").touch()
        return judge(case, Path(folder))


def main() -> int:
    """Judge, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    parser.add_argument("--only", default="", help="names of patterns, by commas")
    parser.add_argument("--group", default="", help="patterns of one file")
    arguments = parser.parse_args()
    load_all()
    only = set(filter(None, arguments.only.split(",")))
    cases = [c for c in CASES.values() if (not only or c.name in only) and arguments.group in ("", c.group)]
    totals: collections.Counter[str] = collections.Counter()
    unexpected = 0
    if not arguments.json:
        print("| group | pattern | must be | verdict | CPU [s] | detail |\n|---|---|---|---|---|---|")
    for case in cases:
        verdict = judge_in_scratch(case)
        totals[verdict.kind] += 1
        as_declared = verdict.as_declared(case.must)
        unexpected += not as_declared
        row = {"group": case.group, "pattern": case.name, "must": case.must, "as_declared": as_declared}
        if arguments.json:
            print(json.dumps(row | dataclasses.asdict(verdict)), flush=True)
        else:
            mark = "" if as_declared else " (!)"
            detail = verdict.detail.replace("|", "\\|")
            print(
                f"| {case.group} | {case.name} | {case.must} | {verdict.kind}{mark} | {verdict.cpu_s:.1f} | {detail} |",
                flush=True,
            )
    summary = ", ".join(f"{count} {kind}" for kind, count in totals.most_common())
    print(
        json.dumps({"totals": totals, "unexpected": unexpected})
        if arguments.json
        else f"\n{len(cases)} patterns: {summary}; {unexpected} not as declared"
    )
    return 1 if unexpected else 0


if __name__ == "__main__":
    with one_export_process():
        code = main()
    sys.exit(code)
