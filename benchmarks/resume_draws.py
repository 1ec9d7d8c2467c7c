"""Trainings with drawn settings, interrupted at drawn events, resumed, and compared with the uninterrupted ones.

`python benchmarks/resume_draws.py [--draws 200] [--seed 0] [--log FILE] [--only N]`. One line of JSON a draw, with
settings, interruptions and verdict; draws that FILE has already are left out, so a run that was broken off
continues. Exit code 1 where a resumed training ends differently and its run.json says that it would be exact.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "training"))

from resume_draws import check, describe, drawn, warm_up


def main() -> int:
    """Draw, run, compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200, help="draws in all")
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--only", type=int, help="one draw by its number; its folder is kept")
    parser.add_argument("--log", type=Path, help="where the lines go, too")
    options = parser.parse_args()
    done = {}
    if options.log and options.log.exists():
        lines = [json.loads(line) for line in options.log.read_text().splitlines()]
        done = {line["number"]: line for line in lines if line["seed"] == options.seed}
    with tempfile.TemporaryDirectory() as folder:
        warm_up(Path(folder) / "project")
    numbers = range(options.first, options.first + options.draws) if options.only is None else [options.only]
    for number in numbers:
        if number in done:
            continue
        line = one(options.seed, number, keep=options.only is not None)
        done[number] = line
        text = json.dumps(line)
        shown = (
            line
            if options.only is not None
            else {k: line[k] for k in ("number", "verdict", "interruptions", "cpu_s")}
        )
        print(json.dumps(shown), flush=True)
        for difference in line["differences"][:8]:
            print(f"    {difference[-1500:]}", flush=True)
        if options.log:
            with options.log.open("a") as file:
                file.write(text + "\n")
    verdicts = [done[number]["verdict"] for number in numbers]
    counts = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
    print(json.dumps({"seed": options.seed, "draws": len(verdicts), **counts}))
    return 1 if counts.get("UNEQUAL") or counts.get("failed") else 0


def one(seed: int, number: int, *, keep: bool) -> dict[str, object]:
    """A draw and its verdict."""
    draw = drawn(seed, number)
    line = {"seed": seed, **describe(draw)}
    folder = Path(tempfile.mkdtemp(prefix=f"draw{number}-"))
    try:
        verdict = check(draw, folder)
    except AssertionError as error:
        return line | {"verdict": "failed", "differences": [str(error)], "reasons": [], "cpu_s": 0.0}
    finally:
        if keep:
            print(folder)
        else:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
    equal = not verdict.differences
    name = "equal" if equal else "UNEQUAL" if verdict.exact else "unequal, and said so"
    return line | {
        "verdict": name,
        "differences": verdict.differences,
        "reasons": verdict.reasons,
        "cpu_s": round(verdict.cpu_s, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
