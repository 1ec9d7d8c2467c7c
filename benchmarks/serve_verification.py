"""Cost of the checks that `serve` makes before a version answers: at a start with many models, and for a new version.

`python benchmarks/serve_verification.py [--models 13] [--repeats 3] [--megabytes 0] [--json]`.
The same models are served twice by a real Triton: with their manifests and golden samples, and without, as foreign
folders, of which nothing is checked. Measured: seconds from Triton's readiness until the last model is loaded.
"""

import argparse
import json
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from statistics import median

import numpy as np
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import onnx
from onnx_models import linear_signature, prove, publish_model, save_graph

from unitrain.serving import Server

WIDTH = 64


def main() -> int:
    """Start, wait, compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=13, help="in the repository")
    parser.add_argument("--repeats", type=int, default=3, help="starts of each kind, in turn")
    parser.add_argument("--swaps", type=int, default=15, help="new versions of one model, of each kind")
    parser.add_argument("--megabytes", type=int, default=0, help="of weights beside the graph of each model")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    took: dict[str, list[float]] = {"checked": [], "unchecked": []}
    with tempfile.TemporaryDirectory() as folder:
        roots = {kind: Path(folder) / kind for kind in took}
        for kind, root in roots.items():
            for number in range(options.models):
                _publish(root, f"model_{number}", options.megabytes, proven=kind == "checked")
        for repeat in range(options.repeats):
            for kind, root in roots.items():
                took[kind].append(_start(root, options.models, Path(folder) / f"{kind}-{repeat}.log"))
        swaps = {
            kind: _swaps(root, options.swaps, Path(folder) / f"{kind}.log") for kind, root in roots.items()
        }
    figures = {
        "models": options.models,
        "weights of each [MB]": options.megabytes,
        "start, checked, median [s]": round(median(took["checked"]), 2),
        "start, unchecked, median [s]": round(median(took["unchecked"]), 2),
        "rename to loaded, checked, median [s]": round(median(swaps["checked"]), 3),
        "rename to loaded, unchecked, median [s]": round(median(swaps["unchecked"]), 3),
        "checked, all [s]": [round(seconds, 2) for seconds in took["checked"]],
        "unchecked, all [s]": [round(seconds, 2) for seconds in took["unchecked"]],
    }
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:<32} {value}")
    return 0


def _publish(root: Path, name: str, megabytes: int, *, proven: bool) -> int:
    def fill(path: Path) -> None:
        rows = max(1, (megabytes << 20) // (4 * WIDTH))
        weights = onnx.numpy_helper.from_array(np.ones((rows, WIDTH), np.float32), "w")
        start = helper.make_tensor("zero", TensorProto.INT64, [1], [0])
        nodes = [
            helper.make_node("Gather", ["w", "zero"], ["first"], axis=0),
            helper.make_node("Mul", ["x", "first"], ["y"]),
        ]
        kind = {"x": (TensorProto.FLOAT, ["batch", WIDTH])}
        save_graph(path, nodes, kind, {"y": (TensorProto.FLOAT, ["batch", WIDTH])}, [weights, start])
        if megabytes:
            onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.onnx.data")
        if proven:
            prove(path.parent, name, 1, linear_signature(WIDTH), {"x": np.ones((4, WIDTH), np.float32)})

    return publish_model(root, name, n=WIDTH, fill=fill)


def _swaps(root: Path, swaps: int, log: Path) -> list[float]:
    """Seconds from a version's rename until it is loaded, one after another."""
    alone = root.parent / f"{root.name}_alone"
    megabytes = sum(path.stat().st_size for path in (root / "model_0" / "1").iterdir()) >> 20
    proven = (root / "model_0" / "1" / "manifest.json").exists()
    server = Server(alone, log_file=log).start()
    try:
        took = []
        for _ in range(swaps + 1):
            number = _publish(alone, "model_0", megabytes, proven=proven)
            began = time.monotonic()
            server.wait_for("model_0", number)
            took.append(time.monotonic() - began)
        return took[1:]
    finally:
        server.stop(timeout_s=0)


def _start(root: Path, models: int, log: Path) -> float:
    """Seconds from Triton's readiness until the last model is loaded."""
    server = Server(root, log_file=log).start()
    try:
        for number in range(models):
            server.wait_for(f"model_{number}", 1, timeout_s=300)
        times = [
            datetime.fromisoformat(event["time"])
            for event in server.events()
            if event["event"] in ("ready", "loaded")
        ]
        return (times[-1] - times[0]).total_seconds()
    finally:
        server.stop(timeout_s=0)


if __name__ == "__main__":
    sys.exit(main())
