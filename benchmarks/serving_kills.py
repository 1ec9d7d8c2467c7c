"""How soon a model is served again after its process, or Triton itself, was killed; and how soon it starts.

`python benchmarks/serving_kills.py [--kills 20] [--starts 5] [--seed 0] [--json]`. `kill -9` at random moments, under
requests; served again is the first right answer. Exit code 1 where a target is missed (a stub 5 s, Triton 10 s,
start to ready with one model 5 s), or a process, a shared-memory region or a temporary folder is left at the end.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from serving_load import Load, publish_good
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from unitrain.serving import Server
from unitrain.serving.triton.system_processes import command_lines, group_members, memory_bytes

STUB_S, TRITON_S, START_S = 5.0, 10.0, 5.0


def main() -> int:
    """Run it and print the figures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of a stub, and again of Triton")
    parser.add_argument("--starts", type=int, default=5, help="starts with one model")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    rng = random.Random(options.seed)  # noqa: S311 - no secret
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.kills, rng) | measure_start(Path(folder), options.starts)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<44} {value}")
    return 0 if all(value == 0 or not name.startswith("missed") for name, value in figures.items()) else 1


def measure(folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill stubs, then Tritons, of one server."""
    server = Server(folder / "repository", log_file=folder / "log").start()
    groups = set()
    try:
        publish_good(server.repository)
        server.wait_for("linear", 1)
        with Load(server.url, threads=1) as load:
            load.wait_for(1)
            stub_s, weight = [], []
            for _ in range(kills):
                time.sleep(rng.uniform(0.5, 1.5))
                stub_s.append(_kill_and_wait(load, _stub(server.triton_pid)))
                weight.append(memory_bytes(server.pid))
            triton_s = []
            for _ in range(kills):
                time.sleep(rng.uniform(0.5, 1.5))
                groups.add(server.triton_pid)
                seen = len(server.events())
                triton_s.append(_kill_and_wait(load, server.triton_pid))
                server.wait_for_event("ready", after=seen)
            groups.add(server.triton_pid)
    finally:
        server.stop()
    time.sleep(1)
    left = [pid for group in groups for pid in group_members(group)]
    regions = [name for name in os.listdir("/dev/shm") if name.startswith(f"unitrain_{server.pid}_")]  # noqa: PTH208, S108 - names only, of where Linux keeps them
    return {
        "kills of a stub": len(stub_s),
        "served again, median [s]": round(median(stub_s), 2),
        "served again, worst [s]": round(max(stub_s), 2),
        "kills of Triton": len(triton_s),
        "Triton served again, median [s]": round(median(triton_s), 2),
        "Triton served again, worst [s]": round(max(triton_s), 2),
        "memory of serve, first and last [MB]": [round(w / 2**20, 1) for w in (weight[0], weight[-1])],
        "missed: stubs later than 5 s": sum(s > STUB_S for s in stub_s),
        "missed: Tritons later than 10 s": sum(s > TRITON_S for s in triton_s),
        "missed: processes left": len(left),
        "missed: shared memory left": len(regions),
    }


def measure_start(folder: Path, starts: int) -> dict[str, Any]:
    """From the start of the command to the first answer of one model."""
    took = []
    for _ in range(starts):
        began = time.monotonic()
        server = Server(folder / "repository", log_file=folder / "log").start()
        try:
            _await_answer(server.url)
            took.append(time.monotonic() - began)
        finally:
            server.stop()
    return {
        "starts": starts,
        "start to first answer, median [s]": round(median(took), 2),
        "start to first answer, worst [s]": round(max(took), 2),
        "missed: starts later than 5 s (median)": int(median(took) > START_S),
    }


def _await_answer(url: str) -> None:
    with InferenceServerClient(url) as client:
        tensor = InferInput("x", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 3), np.float32))
        while True:
            try:
                client.infer("linear", [tensor], client_timeout=5)
            except InferenceServerException:
                time.sleep(0.02)
            else:
                return


def _stub(triton_pid: int) -> int:
    words = command_lines()
    return next(pid for pid in group_members(triton_pid) if "python_backend_stub " in words.get(pid, ""))


def _kill_and_wait(load: Load, pid: int) -> float:
    before, failed = len(load.outages), len(load.failed)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while len(load.failed) == failed and time.monotonic() < began + 15:
        time.sleep(0.005)
    while len(load.outages) == before and time.monotonic() < began + 60:
        time.sleep(0.005)
    return load.outages[-1][1] - began if len(load.outages) > before else float("inf")


if __name__ == "__main__":
    sys.exit(main())
