"""How long `predict` of one sample takes from the command line, the whole process.

    python benchmarks/client_startup.py [--rounds 15] [--imports] [--json]

A real Triton serves a tiny MLP; `--input random --count 1` and one line of JSON from standard input take turns with an
interpreter that does nothing and with one that only imports tritonclient and numpy. With --imports: the slowest
imports of `predict` instead, by `python -X importtime`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from client_served import publish, served
from paired import line, summary, take_turns

ROOT = Path(__file__).resolve().parents[1]
TARGET_S = 0.8


def run(words: list[str], stdin: str = "") -> str:
    """What a process said on standard error; it must end well."""
    return subprocess.run(
        [sys.executable, *words], input=stdin, capture_output=True, text=True, check=True, cwd=ROOT
    ).stderr


def contenders(url: str) -> dict[str, Callable[[], object]]:
    """Each way, by name."""
    predict = ["-m", "unitrain", "predict", "mlp", "--url", url]
    row = json.dumps({"x": [0.5] * 8}) + "\n"
    return {
        "python -c pass": partial(run, ["-c", "pass"]),
        "import numpy, tritonclient.grpc": partial(run, ["-c", "import numpy, tritonclient.grpc"]),
        "predict --input random": partial(run, [*predict, "--input", "random"]),
        "predict --input - (one line)": partial(run, [*predict, "--input", "-"], row),
    }


def slowest_imports(url: str, count: int = 25) -> list[str]:
    """The slowest imports of one `predict`: own and with what they import, in ms."""
    told = run(["-X", "importtime", "-m", "unitrain", "predict", "mlp", "--url", url, "--input", "random"])
    rows = [
        r.removeprefix("import time:").split("|") for r in told.splitlines() if r.startswith("import time:")
    ]
    times = [(int(own) / 1e3, int(all_) / 1e3, name.strip()) for own, all_, name in rows[1:]]
    return [
        f"{name:<50} {all_:>8.1f} ms, own {own:.1f} ms"
        for own, all_, name in sorted(times, key=lambda t: -t[1])[:count]
    ]


def main() -> int:
    """Measure, and print the table; 1 where the target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--imports", action="store_true", help="the slowest imports instead")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        publish(Path(folder) / "repository", "mlp")
        with served(Path(folder) / "repository", "mlp") as server:
            if options.imports:
                print("\n".join(slowest_imports(server.url)))
                return 0
            times = take_turns(contenders(server.url), rounds=options.rounds)
    figures = {name: summary(values) for name, values in times.items()}
    if options.json:
        print(json.dumps({"unit": "s", "figures": figures}))
    else:
        for name, figure in figures.items():
            print(line(name, figure, "s"))
    return 0 if figures["predict --input random"]["median"] <= TARGET_S else 1


if __name__ == "__main__":
    sys.exit(main())
