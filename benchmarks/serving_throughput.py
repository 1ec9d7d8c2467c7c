"""Throughput and latency of a served model by rows a request and by clients, beside onnxruntime itself.

`python benchmarks/serving_throughput.py [--seconds 3] [--rounds 3] [--json]`. A tiny MLP and a conv autoencoder of
[240, 12], each asked by clients that send one request after another. Beside them, within each round: the same
graph in onnxruntime in one process, and the same model served without dynamic batching, which is one run a request.
"""

import argparse
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
import tritonclient.grpc as triton_grpc
from onnx import TensorProto, helper, numpy_helper
from serving_load import percentile

# After serving_load, which makes the tests' helpers importable.
from onnx_models import publish_model, save_graph  # isort: skip

from unitrain.serving import Server
from unitrain.signature import Signature, TensorSpec

DIMS = {"mlp": (8,), "autoencoder": (240, 12)}
ROWS, CLIENTS = (1, 16, 64), (1, 8)


def main() -> int:
    """Run it and print the rows; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is told")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "repository", log_file=Path(folder) / "log").start()
        try:
            for row in measure(server, options.seconds, options.rounds):
                if options.json:
                    print(json.dumps(row), flush=True)
                else:
                    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        finally:
            server.stop()
    return 0


def measure(server: Server, seconds: float, rounds: int) -> Any:
    """A row of figures for each model, rows a request and number of clients."""
    for name, dims in DIMS.items():
        _publish(server, name, dims)
        _publish(server, f"{name}_single", dims)
        config = server.repository / f"{name}_single" / "config.pbtxt"
        text = config.read_text()
        begin = text.index("dynamic_batching")
        seen = len(server.events())
        config.write_text(text[:begin] + text[text.index("}", begin) + 1 :])
        server.wait_for_event("loaded", after=seen)
        session = onnxruntime.InferenceSession(server.repository / name / "1" / "model.onnx", _options())
        for rows in ROWS:
            sample = np.random.default_rng(0).normal(size=(rows, *dims)).astype(np.float32)
            for clients in CLIENTS:
                ways: dict[str, Callable[[], tuple[float, list[float]]]] = {
                    "served": lambda n=name, s=sample, c=clients: _ask(server.url, n, s, c, seconds),  # type: ignore[misc]
                    "one run a request": lambda n=name, s=sample, c=clients: _ask(  # type: ignore[misc]
                        server.url, f"{n}_single", s, c, seconds
                    ),
                    "onnxruntime": lambda o=session, s=sample: _run(o, s, seconds),  # type: ignore[misc]
                }
                figures: dict[str, list[tuple[float, list[float]]]] = {way: [] for way in ways}
                for _ in range(rounds):
                    for way, measured in ways.items():
                        figures[way].append(measured())
                row: dict[str, Any] = {"model": name, "rows": rows, "clients": clients}
                for way, results in figures.items():
                    latencies = [value for _, values in results for value in values]
                    row[f"{way} [rows/s]"] = round(median(rate for rate, _ in results))
                    row[f"{way} p50, p99 [ms]"] = [
                        round(1000 * percentile(latencies, q), 3) for q in (0.5, 0.99)
                    ]
                yield row


def _ask(url: str, model: str, sample: np.ndarray, clients: int, seconds: float) -> tuple[float, list[float]]:
    """Rows a second and seconds a request of clients that wait for each answer."""
    latencies: list[list[float]] = [[] for _ in range(clients)]
    until = time.monotonic() + seconds

    def run(mine: list[float]) -> None:
        with triton_grpc.InferenceServerClient(url) as client:
            tensor = triton_grpc.InferInput("x", list(sample.shape), "FP32")
            tensor.set_data_from_numpy(sample)
            while time.monotonic() < until:
                began = time.perf_counter()
                client.infer(model, [tensor]).as_numpy("y")
                mine.append(time.perf_counter() - began)

    threads = [threading.Thread(target=run, args=(mine,)) for mine in latencies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [value for mine in latencies for value in mine]
    return len(together) * len(sample) / seconds, together


def _run(
    session: onnxruntime.InferenceSession, sample: np.ndarray, seconds: float
) -> tuple[float, list[float]]:
    latencies = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.perf_counter()
        session.run(None, {"x": sample})
        latencies.append(time.perf_counter() - began)
    return len(latencies) * len(sample) / seconds, latencies


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as it is served
    return options


def _publish(server: Server, name: str, dims: tuple[int, ...]) -> None:
    signature = Signature((TensorSpec("x", "FP32", dims),), (TensorSpec("y", "FP32", dims),), batched=True)
    fill = _mlp if len(dims) == 1 else _autoencoder
    publish_model(server.repository, name, signature=signature, fill=fill)
    server.wait_for(name, 1)


def _mlp(path: Path) -> None:
    """8 → 64 → 64 → 8."""
    rng = np.random.default_rng(0)
    sizes, nodes, weights, last = (8, 64, 64, 8), [], [], "x"
    for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        weights.append(_weight(f"w{layer}", rng.normal(size=(n_in, n_out)) / n_in**0.5))
        name = "y" if layer == 2 else f"a{layer}"
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [name if layer == 2 else f"h{layer}"]))
        if layer < 2:
            nodes.append(helper.make_node("Tanh", [f"h{layer}"], [name]))
        last = name
    kind = (TensorProto.FLOAT, ["batch", 8])
    save_graph(path, nodes, {"x": kind}, {"y": kind}, weights)


def _autoencoder(path: Path) -> None:
    """[240, 12] by three convolutions of stride 2 to 30 steps, and back."""
    rng = np.random.default_rng(0)
    sizes, nodes, weights = (
        (12, 32, 64, 64),
        [helper.make_node("Transpose", ["x"], ["t0"], perm=[0, 2, 1])],
        [],
    )
    last = "t0"
    for layer in range(6):
        up = layer >= 3
        n_in, n_out = (sizes[6 - layer], sizes[5 - layer]) if up else (sizes[layer], sizes[layer + 1])
        shape = (n_in, n_out, 4) if up else (n_out, n_in, 4)
        weights.append(_weight(f"w{layer}", rng.normal(size=shape) / (4 * n_in) ** 0.5))
        kind = "ConvTranspose" if up else "Conv"
        nodes.append(helper.make_node(kind, [last, f"w{layer}"], [f"h{layer}"], strides=[2], pads=[1, 1]))
        if layer < 5:
            nodes.append(helper.make_node("Relu", [f"h{layer}"], [f"a{layer}"]))
        last = f"a{layer}"
    nodes.append(helper.make_node("Transpose", ["h5"], ["y"], perm=[0, 2, 1]))
    kind_of = (TensorProto.FLOAT, ["batch", 240, 12])
    save_graph(path, nodes, {"x": kind_of}, {"y": kind_of}, weights)


def _weight(name: str, array: np.ndarray) -> Any:
    return numpy_helper.from_array(array.astype(np.float32), name)


if __name__ == "__main__":
    sys.exit(main())
