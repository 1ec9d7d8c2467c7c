"""Samples a second by way of asking, by batch size, in one run against a real Triton.

    python benchmarks/client_throughput.py [--seconds 1] [--rounds 3] [--batches 1 8 64 512] [--json]
    python benchmarks/client_throughput.py --profile

A tiny MLP (FP32[8]) and a convolutional autoencoder (FP32[240, 12]). What tritonclient is asked is what its own
examples do. The ways take turns in each round; ratios are of one round, and their median is shown. With
--profile: where the client's own time goes, in place of the figures.
"""

import argparse
import cProfile
import functools
import itertools
import json
import pstats
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
import tritonclient.grpc as triton
from client_served import DIMS, publish, served

from unitrain.client import Client

WINDOW = 16
Asking = Callable[[float], float]
"""Asks for so many seconds and returns samples a second, from the first request on a connection that stands."""


def request_input(rows: np.ndarray) -> list[Any]:
    """The rows as tritonclient's examples make an input of them."""
    tensor = triton.InferInput("x", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return [tensor]


def unary_loop(url: str, model: str, rows: np.ndarray) -> Asking:
    """The `infer` of tritonclient, one request after the other."""
    client = triton.InferenceServerClient(url)

    def ask(seconds: float) -> float:
        start, count = time.monotonic(), 0
        while time.monotonic() - start < seconds:
            client.infer(model, request_input(rows)).as_numpy("y")
            count += len(rows)
        return count / (time.monotonic() - start)

    return ask


class _InFlight:
    """Counts answers, and keeps as many requests in flight as our window has."""

    def __init__(self) -> None:
        self.free = threading.Semaphore(WINDOW)
        self.counted = itertools.count()

    def answered(self, result: Any, error: Any) -> None:
        """Tritonclient's callback."""
        if error is not None:
            raise error
        result.as_numpy("y")
        next(self.counted)
        self.free.release()

    def end(self) -> int:
        """Wait for the rest; how many were answered."""
        for _ in range(WINDOW):
            self.free.acquire()
        return next(self.counted)


def asynchronous(url: str, model: str, rows: np.ndarray) -> Asking:
    """The `async_infer` of tritonclient."""
    client = triton.InferenceServerClient(url)

    def ask(seconds: float) -> float:
        flight, start = _InFlight(), time.monotonic()
        while time.monotonic() - start < seconds:
            flight.free.acquire()
            client.async_infer(model, request_input(rows), flight.answered)
        return flight.end() * len(rows) / (time.monotonic() - start)

    return ask


def streamed(url: str, model: str, rows: np.ndarray) -> Asking:
    """The `async_stream_infer` of tritonclient."""

    def ask(seconds: float) -> float:
        flight = _InFlight()
        with triton.InferenceServerClient(url) as client:
            client.start_stream(flight.answered)
            start = time.monotonic()
            while time.monotonic() - start < seconds:
                flight.free.acquire()
                client.async_stream_infer(model, request_input(rows))
            return flight.end() * len(rows) / (time.monotonic() - start)

    return ask


def unitrain_rows(url: str, model: str, rows: np.ndarray, batch_rows: int | None) -> Asking:
    """This client, its source giving single rows."""
    single = list(rows)

    def ask(seconds: float) -> float:
        return _stream(url, model, ({"x": row} for row in itertools.cycle(single)), seconds, batch_rows)

    return ask


def unitrain_arrays(url: str, model: str, rows: np.ndarray, *, shared_memory: bool = False) -> Asking:
    """This client, its source giving arrays that have the batch axis already."""

    def ask(seconds: float) -> float:
        samples = itertools.repeat({"x": rows})
        return _stream(url, model, samples, seconds, len(rows), shared_memory=shared_memory)

    return ask


def _stream(
    url: str, model: str, samples: Any, seconds: float, batch_rows: int | None, *, shared_memory: bool = False
) -> float:
    with Client(url) as client:
        results = client.stream(
            model, samples, batch_rows=batch_rows, window=WINDOW, shared_memory=shared_memory
        )
        next(results)  # the connection stands
        start, count = time.monotonic(), 0
        for number, result in enumerate(results):
            if result.outputs is None:
                raise SystemExit(f"sample {number} failed: {result.error}")
            y = result.outputs["y"]
            count += len(y) if y.ndim > len(DIMS[model][1]) else 1
            if not number & 15 and time.monotonic() - start > seconds:
                break
        rate = count / (time.monotonic() - start)
        results.close()
    return rate


def raw_onnxruntime(path: Path, rows: np.ndarray) -> Asking:
    """The graph in this process by onnxruntime, on one core as the server has it: no server, no wire."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def ask(seconds: float) -> float:
        start, count = time.monotonic(), 0
        while time.monotonic() - start < seconds:
            session.run(None, {"x": rows})
            count += len(rows)
        return count / (time.monotonic() - start)

    return ask


def ways(url: str, model: str, path: Path, batch: int) -> dict[str, Asking]:
    """Every way of asking `batch` rows at a time."""
    rows = np.random.default_rng(batch).normal(size=(batch, *DIMS[model][0])).astype(np.float32)
    found = {
        "tritonclient unary loop": unary_loop(url, model, rows),
        "tritonclient async": asynchronous(url, model, rows),
        "tritonclient stream": streamed(url, model, rows),
        "unitrain, arrays": unitrain_arrays(url, model, rows),
        "unitrain, single rows": unitrain_rows(url, model, rows, batch),
        "unitrain, arrays, --shm": unitrain_arrays(url, model, rows, shared_memory=True),
        "raw onnxruntime": raw_onnxruntime(path, rows),
    }
    if batch == 1:
        many = np.repeat(rows, 64, axis=0)
        found["unitrain, single rows, as it chooses"] = unitrain_rows(url, model, many, None)
    return found


def measure(asked: dict[str, Asking], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Samples a second of each way in each round; one short round before is not counted."""
    rates: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(rounds + 1):
        for name, ask in asked.items():
            rate = ask(seconds if turn else 0.2)
            if turn:
                rates[name].append(rate)
    return rates


def compare(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians: samples a second, and ratios to the unary loop, to the best of tritonclient, to raw onnxruntime."""
    peer = max((n for n in rates if n.startswith("tritonclient")), key=lambda name: median(rates[name]))
    best = rates[peer]
    peers = {"unary": rates["tritonclient unary loop"], "best": best, "raw": rates["raw onnxruntime"]}
    return {
        name: {"samples_per_s": round(median(values), 1)}
        | {
            f"of_{peer}": round(median(a / b for a, b in zip(values, theirs, strict=True)), 3)
            for peer, theirs in peers.items()
        }
        for name, values in rates.items()
    }


def profile(url: str) -> None:
    """Print where the client's time goes, by thread and by function, for single rows and for single requests."""
    rows = np.random.default_rng(0).normal(size=(512, 8)).astype(np.float32)
    for title, ask in (
        ("single rows of the MLP, as it chooses", unitrain_rows(url, "mlp", rows, None)),
        ("requests of one row", unitrain_arrays(url, "mlp", rows[:1])),
    ):
        ask(0.5)
        cpu = time.process_time()
        rate = ask(3)
        share = (time.process_time() - cpu) / 3
        print(f"== {title}: {rate:,.0f} a second, {share / rate * 1e6:.2f} µs of CPU each")
        _trace(functools.partial(ask, 3))


def _trace(call: Callable[[], float]) -> None:
    """Print the functions that take the most time, in the reader's and the receiver's threads, too."""
    tracer = cProfile.Profile()
    threading.setprofile(lambda *_: tracer.enable(subcalls=False))
    tracer.enable()
    call()
    tracer.disable()
    threading.setprofile(None)  # type: ignore[arg-type]
    pstats.Stats(tracer).sort_stats("tottime").print_stats(14)


def main() -> int:
    """Measure every way in turn and print the tables; 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="for each way in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--models", nargs="+", default=list(DIMS), choices=list(DIMS))
    parser.add_argument("--profile", action="store_true", help="where the client's time goes")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of the tables")
    options = parser.parse_args()
    measured: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        paths = {name: publish(repository, name) for name in DIMS}
        with served(repository, *DIMS) as server:
            if options.profile:
                profile(server.url)
                return 0
            for model in options.models:
                for batch in options.batches:
                    asked = ways(server.url, model, paths[model], batch)
                    figures = compare(measure(asked, options.seconds, options.rounds))
                    measured.setdefault(model, {})[batch] = figures
                    if not options.json:
                        _print(model, batch, figures)
    targets = check(measured)
    if options.json:
        print(json.dumps({"window": WINDOW, "measured": measured, "targets": targets}))
    else:
        for name, (got, wanted) in targets.items():
            print(f"{'met   ' if got >= wanted else 'missed'} {name}: {got:.2f} (target {wanted:g})")
    return 0


def check(measured: dict[str, dict[int, dict[str, dict[str, float]]]]) -> dict[str, tuple[float, float]]:
    """What was got and what was wanted, for each target whose figures are there."""
    targets = {}
    for model, batches in measured.items():
        for batch, figures in batches.items():
            name = f"{model}, {batch} rows a request, of the best of tritonclient"
            targets[name] = (figures["unitrain, arrays"]["of_best"], 1.0)
            single = figures.get("unitrain, single rows, as it chooses")
            if model == "mlp" and single:
                targets["mlp, single-sample source, times the unary loop"] = (single["of_unary"], 30.0)
            if model == "autoencoder" and batch == 64:
                targets["autoencoder at 64, of raw onnxruntime"] = (
                    figures["unitrain, arrays"]["of_raw"],
                    0.45,
                )
                shm = figures["unitrain, arrays, --shm"]["of_raw"]
                targets["autoencoder at 64 with --shm, of raw onnxruntime"] = (shm, 0.60)
    return targets


def _print(model: str, batch: int, figures: dict[str, dict[str, float]]) -> None:
    print(
        f"{model + ', ' + str(batch) + ' rows a request':<38}{'samples/s':>12}{'x unary':>9}{'x best':>8}{'x raw':>8}"
    )
    for name, row in figures.items():
        rate = f"{row['samples_per_s']:,.0f}"
        print(f"  {name:<36}{rate:>12}{row['of_unary']:>9.1f}{row['of_best']:>8.2f}{row['of_raw']:>8.3f}")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
