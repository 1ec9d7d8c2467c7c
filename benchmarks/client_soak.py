"""A million samples through one stream while versions are swapped and the server is killed.

    python benchmarks/client_soak.py [--samples 1000000] [--swap-every 2] [--kills 5] [--shm] [--json]

A real Triton serves y = scale * x, where every version has another scale; a new version is published every
`--swap-every` seconds, and Triton is killed with SIGKILL at even distances. Each answer must be that of its
sample under the version it names, each sample must be answered once and in order, and the client's memory must
stay flat: RSS after the first tenth against the largest later on. Exit code 1 where any of this fails.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from unitrain import Client
from unitrain.repository import Repository, model_config
from unitrain.serving import Server
from unitrain.signature import Signature, TensorSpec

MODEL, WIDTH = "scaled", 8
MOST_GROWTH_MB = 20.0


def publish(repository: Path) -> int:
    """The number of a new version; it answers y = number * x."""
    spec = TensorSpec("x", "FP32", (WIDTH,)), TensorSpec("y", "FP32", (WIDTH,))
    config = model_config(
        MODEL,
        Signature(spec[:1], spec[1:], batched=True),
        max_batch_size=1024,
        num_versions=2,
        max_queue_delay_microseconds=100,
    )

    def write(folder: Path, number: int) -> None:
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", WIDTH]) for n in ("x", "y"))
        scale = onnx.numpy_helper.from_array(np.float32(number), "scale")
        graph = helper.make_graph([helper.make_node("Mul", ["x", "scale"], ["y"])], "g", [x], [y], [scale])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
            folder / "model.onnx",
        )

    return Repository(repository).publish(MODEL, config, write)


def swap(repository: Path, every_s: float, over: Any) -> None:
    """Publish a version every so often until `over` is set, and keep the newest few."""
    while not over.wait(every_s):
        publish(repository)
        Repository(repository).prune(MODEL, keep=8, num_versions=2)


def samples(count: int, seconds: float) -> Iterator[dict[str, np.ndarray]]:
    """Row i is i mod 2^20 everywhere; given no faster than takes so long in all."""
    start = time.monotonic()
    for i in range(count):
        if i % 1000 == 0:
            time.sleep(max(0.0, start + seconds * i / count - time.monotonic()))
        yield {"x": np.full(WIDTH, i % 2**20, np.float32)}


def rss_mb() -> float:
    """Of this process, in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(
    folder: Path, *, count: int, swap_every_s: float, kills: int, seconds: float, shared_memory: bool = False
) -> dict[str, Any]:
    """Run it and return its figures."""
    repository = folder / "repository"
    publish(repository)
    server = Server(repository, options=("--grace", "0")).start()
    # In a process of its own: what publishing takes of memory is not the client's.
    processes = multiprocessing.get_context("spawn")
    over = processes.Event()
    swapper = processes.Process(target=swap, args=(repository, swap_every_s, over))
    figures: dict[str, Any] = {"samples": count, "answered": 0, "failed": 0, "out of order": 0, "wrong": 0}
    versions: set[int] = set()
    kill_at = {count * (n + 1) // (kills + 1) for n in range(kills)}
    killed, first_tenth, largest = 0, 0.0, 0.0
    try:
        server.wait_for(MODEL)
        swapper.start()
        start = time.monotonic()
        with Client(server.url) as client:
            results = client.stream(MODEL, samples(count, seconds), shared_memory=shared_memory)
            for place, result in enumerate(results):
                figures["out of order"] += result.index != place
                if result.outputs is None:
                    figures["failed"] += 1
                    figures.setdefault("first error", str(result.error))
                else:
                    figures["answered"] += 1
                    versions.add(result.version)
                    right = np.float32(place % 2**20) * np.float32(result.version)
                    figures["wrong"] += not (result.outputs["y"] == right).all()
                if place in kill_at:
                    os.kill(server.triton_pid, signal.SIGKILL)
                    killed += 1
                if place == count // 10:
                    first_tenth = largest = rss_mb()
                elif place % 10_000 == 0:
                    largest = max(largest, rss_mb())
        took = time.monotonic() - start
    finally:
        over.set()
        if swapper.is_alive():
            swapper.join()
        server.stop()
    return figures | {
        "kills": killed,
        "versions published": Repository(repository).versions(MODEL)[-1],
        "versions that answered": len(versions),
        "seconds": round(took, 1),
        "samples/s": round(count / took),
        "RSS after a tenth [MB]": round(first_tenth, 1),
        "RSS growth after it [MB]": round(largest - first_tenth, 1),
    }


def is_good(figures: dict[str, Any], kills: int) -> bool:
    """Whether nothing was lost, doubled, wrong or out of order, and memory stayed flat."""
    return (
        figures["answered"] == figures["samples"]
        and not (figures["failed"] or figures["out of order"] or figures["wrong"])
        and figures["kills"] == kills
        and figures["RSS growth after it [MB]"] <= MOST_GROWTH_MB
    )


def main() -> int:
    """Run it and print the figures; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="the source takes so long at least")
    parser.add_argument("--swap-every", type=float, default=2.0, metavar="S")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--shm", action="store_true", help="by shared memory")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = soak(
            Path(folder),
            count=options.samples,
            swap_every_s=options.swap_every,
            kills=options.kills,
            seconds=options.seconds,
            shared_memory=options.shm,
        )
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<26} {value}")
    return 0 if is_good(figures, options.kills) else 1


if __name__ == "__main__":
    sys.exit(main())
