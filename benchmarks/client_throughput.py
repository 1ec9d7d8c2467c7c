"""Samples a second by way of asking, on a tiny MLP, in one run against a real Triton.

    python benchmarks/client_throughput.py [--seconds 2] [--json]

Every way sends the same rows of FP32[8]; what tritonclient is asked is what its own examples do. Figures of
different runs are not comparable; the ratios within one are.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tritonclient.grpc as triton
from onnx import TensorProto, helper

from unitrain.client import Client
from unitrain.repository import Repository, model_config
from unitrain.tensors import Signature, TensorSpec

WIDTH, HIDDEN, OUT, WINDOW, MODEL = 8, 64, 4, 16, "mlp"
Counted = Callable[[float], int]
"""Runs until a time of the monotonic clock and returns the samples answered."""


def save_mlp(path: Path) -> None:
    """Write an MLP of 8-64-64-4 with random weights."""
    generator = np.random.default_rng(0)
    sizes = (WIDTH, HIDDEN, HIDDEN, OUT)
    nodes, weights, last = [], [], "x"
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        matrix = generator.normal(size=(fan_in, fan_out)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(matrix, f"w{layer}"))
        name = "y" if layer == len(sizes) - 2 else f"h{layer}"
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [name]))
        if name != "y":
            nodes.append(helper.make_node("Relu", [name], [f"r{layer}"]))
        last = f"r{layer}"
    graph = helper.make_graph(
        nodes,
        MODEL,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", OUT])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@contextmanager
def served(repository: Path) -> Iterator[str]:
    """The address of a Triton that serves the MLP; it is ended after the block."""
    signature = Signature(
        (TensorSpec("x", "FP32", (WIDTH,)),), (TensorSpec("y", "FP32", (OUT,)),), batched=True
    )
    config = model_config(
        MODEL, signature, max_batch_size=1024, num_versions=2, max_queue_delay_microseconds=100
    )
    Repository(repository).publish(MODEL, config, lambda folder, _number: save_mlp(folder / "model.onnx"))
    command = [sys.executable, "-m", "unitrain", "serve", "--model-repository", str(repository), "--json"]
    command += ["--grpc-port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = ""
            for line in process.stdout or ():
                event = json.loads(line)
                url = event.get("grpc", url)
                if event["event"] == "loaded":
                    break
            yield url
        finally:
            process.terminate()
            process.communicate()


def request_input(rows: np.ndarray) -> list[Any]:
    """The rows as tritonclient's examples make an input of them."""
    tensor = triton.InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return [tensor]


def unary_loop(url: str, rows: np.ndarray) -> Counted:
    """The `infer` of tritonclient, one request after the other."""
    client = triton.InferenceServerClient(url)

    def run(until: float) -> int:
        count = 0
        while time.monotonic() < until:
            client.infer(MODEL, request_input(rows)).as_numpy("y")
            count += len(rows)
        return count

    return run


def asynchronous(url: str, rows: np.ndarray) -> Counted:
    """The `async_infer` of tritonclient, as many in flight as our window."""
    client = triton.InferenceServerClient(url)

    def run(until: float) -> int:
        free, counted = threading.Semaphore(WINDOW), itertools.count()

        def answered(result: Any, error: Any) -> None:
            if error is not None:
                raise error
            result.as_numpy("y")
            next(counted)
            free.release()

        while time.monotonic() < until:
            free.acquire()
            client.async_infer(MODEL, request_input(rows), answered)
        for _ in range(WINDOW):
            free.acquire()
        return next(counted) * len(rows)

    return run


def streamed(url: str, rows: np.ndarray) -> Counted:
    """The `async_stream_infer` of tritonclient, as many in flight as our window."""

    def run(until: float) -> int:
        free, counted = threading.Semaphore(WINDOW), itertools.count()

        def answered(result: Any, error: Any) -> None:
            if error is not None:
                raise error
            result.as_numpy("y")
            next(counted)
            free.release()

        with triton.InferenceServerClient(url) as client:
            client.start_stream(answered)
            while time.monotonic() < until:
                free.acquire()
                client.async_stream_infer(MODEL, request_input(rows))
            for _ in range(WINDOW):
                free.acquire()
        return next(counted) * len(rows)

    return run


def unitrain_rows(url: str, rows: np.ndarray, batch_rows: int | None) -> Counted:
    """This client, its source giving single rows."""

    def run(until: float) -> int:
        samples = ({"x": row} for row in itertools.cycle(list(rows)))
        return _count(url, samples, until, batch_rows=batch_rows)

    return run


def unitrain_batches(url: str, rows: np.ndarray) -> Counted:
    """This client, its source giving arrays that have the batch axis already."""

    def run(until: float) -> int:
        samples = ({"x": rows} for _ in itertools.count())
        return _count(url, samples, until, batch_rows=len(rows), rows=len(rows))

    return run


def _count(url: str, samples: Any, until: float, *, batch_rows: int | None, rows: int = 1) -> int:
    stop, count = threading.Event(), 0
    with Client(url) as client:
        for result in client.stream(MODEL, samples, batch_rows=batch_rows, window=WINDOW, stop=stop):
            if result.error is not None:
                raise result.error
            count += rows
            if not count & 63 and time.monotonic() > until:
                stop.set()
    return count


def raw_onnxruntime(path: Path, rows: np.ndarray) -> Counted:
    """The graph in this process by onnxruntime: no server, no wire."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(until: float) -> int:
        count = 0
        while time.monotonic() < until:
            session.run(None, {"x": rows})
            count += len(rows)
        return count

    return run


def main() -> int:
    """Measure every way in turn and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each way")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the table")
    options = parser.parse_args()
    rows = {n: np.random.default_rng(n).normal(size=(n, WIDTH)).astype(np.float32) for n in (1, 64, 512)}
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        with served(repository) as url:
            ways: list[tuple[str, str, Counted]] = [
                ("tritonclient unary loop", "1", unary_loop(url, rows[1]))
            ]
            for n, batch in rows.items():
                ways.append(("tritonclient async", str(n), asynchronous(url, batch)))
                ways.append(("tritonclient stream", str(n), streamed(url, batch)))
                ways.append(("unitrain, source of arrays", str(n), unitrain_batches(url, batch)))
            ways += [
                ("unitrain, source of rows", str(n or "auto"), unitrain_rows(url, rows[512], n))
                for n in (None, 1, 64, 512)
            ]
            path = repository / MODEL / "1" / "model.onnx"
            ways += [("raw onnxruntime", str(n), raw_onnxruntime(path, batch)) for n, batch in rows.items()]
            for name, batch_rows, run in ways:
                run(time.monotonic() + 0.3)  # warm
                start = time.monotonic()
                rate = run(start + options.seconds) / (time.monotonic() - start)
                measured.append({"way": name, "rows_a_request": batch_rows, "samples_per_s": round(rate, 1)})
    unary = measured[0]["samples_per_s"]
    for row in measured:
        row["times_unary"] = round(row["samples_per_s"] / unary, 2)
    if options.json:
        print(json.dumps({"seconds": options.seconds, "window": WINDOW, "measured": measured}))
        return 0
    print(f"{'way':<28}{'rows a request':>15}{'samples/s':>14}{'x unary':>10}")
    for row in measured:
        rate, times = f"{row['samples_per_s']:,.0f}", f"{row['times_unary']:.1f}"
        print(f"{row['way']:<28}{row['rows_a_request']:>15}{rate:>14}{times:>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
