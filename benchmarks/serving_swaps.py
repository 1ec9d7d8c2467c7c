"""How soon a renamed version answers, under load, and what is lost; and whether `serve` grows.

`python benchmarks/serving_swaps.py [--swaps 30] [--requests 100000] [--seconds 60] [--minutes 10] [--json]`.
A real Triton under requests of two clients without a pause, in four parts: `swaps` renames a version, waits
until it answers, and again; `fast` publishes every 0.4 s; `corrupt` has every third version broken; `memory` swaps for
minutes and weighs the supervisor; `stub` weighs the process that runs the model over twice `requests`. Exit code 1 where a request failed or a target is missed.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from serving_load import Load, percentile, publish_broken, publish_good

from unitrain.serving import Server
from unitrain.serving.triton.system_processes import command_lines, group_members, memory_bytes

PARTS = ("swaps", "fast", "corrupt", "memory", "stub")
MEDIAN_S, TAIL_S = 0.8, 1.5
GROWTH = 0.05


def main() -> int:
    """Run the parts and print the figures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="which, by commas")
    parser.add_argument("--swaps", type=int, default=30, help="good versions of `swaps` and of `corrupt`")
    parser.add_argument(
        "--requests", type=int, default=100_000, help="`swaps` lasts until as many were answered"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long `fast` publishes")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long `memory` swaps")
    parser.add_argument("--seed", type=int, default=0, help="of the pauses between versions")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    for part in options.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            server = Server(Path(folder) / "repository", log_file=Path(folder) / "log").start()
            try:
                publish_good(server.repository)
                server.wait_for("linear", 1)
                figures[part] = globals()[f"measure_{part}"](server, options)
            finally:
                server.stop()
        if not options.json:
            for name, value in figures[part].items():
                print(f"{part:<8} {name:<34} {value}", flush=True)
    if options.json:
        print(json.dumps(figures))
    return 0 if all(figure["good"] for figure in figures.values()) else 1


def measure_swaps(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Renames at random moments, each waited for; the load goes on until enough requests were answered."""
    rng = random.Random(options.seed)  # noqa: S311 - no secret
    took = []
    with Load(server.url) as load:
        load.wait_for(1)
        for _ in range(options.swaps):
            time.sleep(rng.uniform(0.2, 1.0))
            version = publish_good(server.repository)
            took.append(_since(time.monotonic(), load.wait_for(version)))
        while load.answered < options.requests:
            time.sleep(0.2)
    return {
        "renames": len(took),
        "rename to answer, median [s]": round(median(took), 3),
        "rename to answer, 95th percentile [s]": round(percentile(took, 0.95), 3),
        "rename to answer, worst [s]": round(max(took), 3),
        "answered": load.answered,
        "failed": len(load.failed),
        "errors": load.failed[:3],
        "good": not load.failed and median(took) <= MEDIAN_S and percentile(took, 0.95) <= TAIL_S,
    }


def measure_fast(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """A version every 0.4 s: the newest one must be served at the end."""
    with Load(server.url) as load:
        until = time.monotonic() + options.seconds
        newest = 1
        while time.monotonic() < until:
            began = time.monotonic()
            newest = publish_good(server.repository)
            time.sleep(max(0.0, 0.4 - (time.monotonic() - began)))
        took = _since(time.monotonic(), load.wait_for(newest))
        time.sleep(1)
    return {
        "published": newest - 1,
        "versions that answered": len(load.first_s),
        "last version answers after [s]": round(took, 3),
        "answered": load.answered,
        "failed": len(load.failed),
        "errors": load.failed[:3],
        "good": not load.failed and load.last == newest,
    }


def measure_corrupt(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """Every third version can't be opened: each good one must answer, and no request fail."""
    took, broken = [], 0
    with Load(server.url) as load:
        load.wait_for(1)
        while len(took) < options.swaps:
            if (len(took) + broken) % 3 == 2:
                publish_broken(server.repository)
                broken += 1
                time.sleep(0.3)
            version = publish_good(server.repository)
            took.append(_since(time.monotonic(), load.wait_for(version)))
    served = sum(seconds < float("inf") for seconds in took)
    return {
        "good versions": len(took),
        "broken versions": broken,
        "good versions that answered": served,
        "rename to answer, median [s]": round(median(took), 3),
        "rename to answer, worst [s]": round(max(took), 3),
        "answered": load.answered,
        "failed": len(load.failed),
        "errors": load.failed[:3],
        "good": not load.failed and served == len(took),
    }


def measure_memory(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """The supervisor's own memory over minutes of swaps.

    The peaks of both halves are compared: Python takes and gives back arenas of a megabyte, some at a time.
    """
    weighed = []
    began = time.monotonic()
    until = began + 60 * options.minutes
    with Load(server.url, threads=1) as load:
        while time.monotonic() < until:
            version = publish_good(server.repository)
            load.wait_for(version)
            _prune(server.repository, version)
            weighed.append(memory_bytes(server.pid) / 2**20)
    half = len(weighed) // 2
    early, late = max(weighed[:half]), max(weighed[half:])
    return {
        "swaps": len(weighed),
        "memory of serve, median of each tenth [MB]": [
            round(median(weighed[len(weighed) * n // 10 : len(weighed) * (n + 1) // 10]), 2)
            for n in range(10)
        ],
        "memory of serve, most in the first half [MB]": round(early, 2),
        "memory of serve, most in the second half [MB]": round(late, 2),
        "answered": load.answered,
        "failed": len(load.failed),
        "good": not load.failed and late <= (1 + GROWTH) * early,
    }


def measure_stub(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """The memory of the process that runs the model; a leak of one small array a request would be megabytes."""
    words = command_lines()
    stub = next(p for p in group_members(server.triton_pid) if "python_backend_stub " in words.get(p, ""))
    weighed = []
    with Load(server.url) as load:
        while load.answered < 2 * options.requests:
            time.sleep(0.5)
            weighed.append(memory_bytes(stub) / 2**20)
    early, late = weighed[len(weighed) // 10], weighed[-1]
    return {
        "answered": load.answered,
        "failed": len(load.failed),
        "memory of the stub, early [MB]": round(early, 2),
        "memory of the stub, late [MB]": round(late, 2),
        "good": not load.failed and late <= (1 + GROWTH) * early,
    }


def _prune(root: Path, newest: int) -> None:
    from unitrain.repository import Repository

    if newest > 10:
        Repository(root).prune("linear", 6, num_versions=2)


def _since(began: float, end: float | None) -> float:
    return float("inf") if end is None else end - began


if __name__ == "__main__":
    sys.exit(main())
