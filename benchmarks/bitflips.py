"""Single-bit flips in published versions: none may be served.

`python benchmarks/bitflips.py [--flips 1000] [--models 10] [--at-once 10] [--seed 0] [--json]`.
A real `serve` has a good version of each model. Round after round, copies of a version in which one bit was flipped are
published as newer versions: in model.onnx, its external data, golden.npz or manifest.json, a quarter of them each, at a
place drawn at random. Meanwhile requests without a version go to every model; each answer names the version that gave
it. Exit code 1 where a flipped version was loaded, an answer came from one or was wrong, or a flip was never reported.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import onnx
from onnx import TensorProto, helper
from onnx_models import linear_signature, prove, publish_model, save_graph

from unitrain.client import Client
from unitrain.errors import UnitrainError
from unitrain.repository import Repository
from unitrain.serving import Server

FILES = ("model.onnx", "model.onnx.data", "golden.npz", "manifest.json")
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
ROUND_WITHIN_S = 600.0


def main() -> int:
    """Flip, publish, wait for the verdict; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=1000, help="in all")
    parser.add_argument("--models", type=int, default=10, help="served side by side")
    parser.add_argument("--at-once", type=int, default=10, help="flipped versions of a model in a round")
    parser.add_argument("--seed", type=int, default=0, help="of the bits")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "repository", log_file=Path(folder) / "log").start()
        try:
            figures = flip_bits(
                server, options.flips, models=options.models, at_once=options.at_once, seed=options.seed
            )
        finally:
            server.stop()
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<32} {value}")
    return 0 if figures["good"] else 1


def flip_bits(server: Server, flips: int, *, models: int, at_once: int, seed: int = 0) -> dict[str, object]:
    """Publish so many flipped versions beside good ones and count what was served."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    names = [f"model_{number}" for number in range(models)]
    for name in names:
        # All versions are to be served: a flipped one is not passed over for a newer one.
        publish_model(server.repository, name, fill=_graph(name), num_versions=at_once + 1)
    for name in names:
        server.wait_for(name, 1, timeout_s=120)
    began, flipped, seen = time.monotonic(), Counter[str](), len(server.events())
    watch = _Requests(server.url, names)
    with watch:
        while sum(flipped.values()) < flips:
            published: dict[str, list[int]] = {name: [] for name in names}
            for name in (name for name in names for _ in range(at_once)):
                if sum(flipped.values()) < flips:
                    kind = FILES[sum(flipped.values()) % len(FILES)]
                    published[name].append(_publish_flipped(server.repository, name, kind, rng))
                    flipped[kind] += 1
            wanted = {(name, number) for name, numbers in published.items() for number in numbers}
            _wait_for_verdicts(server, wanted, seen)
            for name, number in wanted:
                shutil.rmtree(server.repository / name / str(number))
        time.sleep(0.5)
    told = {(e["model"], e["version"]) for e in server.events()[seen:] if e["event"] == "failed"}
    served = [
        (e["model"], version)
        for e in server.events()[seen:]
        if e["event"] == "loaded"
        for version in e["versions"]
        if version != 1
    ]
    return {
        "flips": sum(flipped.values()),
        **{f"flips in {name}": count for name, count in flipped.items()},
        "reported as failed": len(told),
        "flipped versions served": len(served),
        "answers": watch.answers,
        "answers of flipped versions": watch.others,
        "wrong answers": watch.wrong,
        "failed requests": watch.failed,
        "seconds": round(time.monotonic() - began, 1),
        "good": len(told) == sum(flipped.values())
        and not served
        and not (watch.others or watch.wrong or watch.failed)
        and watch.answers > 0,
    }


def _graph(name: str):  # noqa: ANN202 - a closure for publish_model
    """Writes 2 * x + 1, its weights beside the graph, golden samples and a manifest."""

    def fill(path: Path) -> None:
        kind = (TensorProto.FLOAT, ["batch", 3])
        weights = [
            onnx.numpy_helper.from_array(
                np.full((3, 3), 0, np.float32) + 2 * np.eye(3, dtype=np.float32), "w"
            ),
            onnx.numpy_helper.from_array(np.ones(3, np.float32), "b"),
        ]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
        save_graph(path, nodes, {"x": kind}, {"y": kind}, weights)
        onnx.save(
            onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0
        )
        prove(path.parent, name, 1, linear_signature(), {"x": ROWS})

    return fill


def _publish_flipped(root: Path, name: str, kind: str, rng: random.Random) -> int:
    """Publish a copy of version 1 with one flipped bit, by the rename that publishes any version."""

    def fill(folder: Path, _number: int) -> None:
        shutil.copytree(root / name / "1", folder, dirs_exist_ok=True)
        path = folder / kind
        data = bytearray(path.read_bytes())
        bit = rng.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)

    return Repository(root).publish(name, None, fill)


def _wait_for_verdicts(server: Server, wanted: set[tuple[str, int]], seen: int) -> None:
    """Wait until each version was reported as failed or loaded."""
    deadline = time.monotonic() + ROUND_WITHIN_S
    while time.monotonic() < deadline:
        known = set()
        for event in server.events()[seen:]:
            if event["event"] == "failed":
                known.add((event["model"], event["version"]))
            elif event["event"] == "loaded":
                known |= {(event["model"], version) for version in event["versions"]}
        if wanted <= known:
            return
        time.sleep(0.05)
    raise TimeoutError(f"{len(wanted - known)} of {len(wanted)} versions were neither loaded nor refused")


class _Requests:
    """Requests without a version to every model in turn, for as long as the block lasts."""

    def __init__(self, url: str, names: list[str]) -> None:
        self.answers = self.others = self.wrong = self.failed = 0
        self._url, self._names = url, names
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with Client(self._url) as client:
            while not self._over.wait(0.01):
                for name in self._names:
                    try:
                        answer = client.predict(name, x=ROWS)
                    except UnitrainError:
                        self.failed += 1
                        continue
                    self.answers += 1
                    self.others += answer.version != 1
                    self.wrong += not np.array_equal(answer.outputs["y"], 2 * ROWS + 1)


if __name__ == "__main__":
    sys.exit(main())
