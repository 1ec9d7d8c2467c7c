"""Demonstration: train on real signals while a server loads each new version, then query the held-out signals.

`make demo` runs it. It exits with 1 if a target is missed, and ends every process that it started.
"""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from examples.signals_clustering.client import SignalsIO
from examples.signals_clustering_demo.figures import draw_overview
from examples.signals_clustering_demo.scores import Scores, score_codes
from unitrain import Client
from unitrain.errors import UnitrainError
from unitrain.repository import Repository
from unitrain.repository.manifest import Manifest, read_manifest
from unitrain.serving import Server

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ROOT / "examples" / "signals_clustering" / "settings.yaml"
MODEL = "signals_clustering"
REPOSITORY_DIR = ROOT / "experiments" / "signals_clustering.demo" / "triton_repo"
"""Model repository of the demonstration. It is emptied first: an earlier version would keep an equal one back."""
PLOT_NAME = "signals.png"

MIN_HOT_LOADED = 3
MIN_EXPLAINED_VARIANCE = 0.45
MIN_RATIO_TO_PCA = 1.5
MAX_PARITY = 1e-4
LOAD_TIMEOUT_S = 30.0
END_TIMEOUT_S = 30.0

N_TIMED = 4000
N_SINGLE = 300


def main() -> int:
    """Run the demonstration; return 0 if every target was met."""
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        return _run(Console())
    except (RuntimeError, UnitrainError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(console: Console) -> int:
    shutil.rmtree(REPOSITORY_DIR.parent, ignore_errors=True)
    REPOSITORY_DIR.mkdir(parents=True)
    repository = Repository(REPOSITORY_DIR)
    with Server(repository.root) as server:
        console.print(f"server ready at {server.url}; training begins")
        hot_loaded = _train(server)
        server.wait_for(MODEL, repository.versions(MODEL)[-1], LOAD_TIMEOUT_S)
        served = _query(server.url)
    manifest = read_manifest(repository.version_dir(MODEL, served.version))
    if manifest is None:
        raise RuntimeError(f"version {served.version} of {MODEL} has no manifest")
    return _report(console, served, manifest, hot_loaded)


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _train(server: Server) -> list[int]:
    """Train in a child process; return the versions that the server loaded meanwhile."""
    command = [sys.executable, "-m", "unitrain", "fit", "--config", str(SETTINGS)]
    training = subprocess.Popen([*command, "--publish.repository", str(REPOSITORY_DIR)], cwd=ROOT)
    try:
        exit_code = training.wait()
    finally:
        _end(training)
    if exit_code != 0:
        raise RuntimeError(f"the training ended with exit code {exit_code}; its reason is above")
    loaded = [event for event in server.events() if event["event"] == "loaded" and event["model"] == MODEL]
    return sorted({version for event in loaded for version in event["versions"]})


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Served:
    """Answers of the server.

    Attributes:
        held_out: held-out signals and their answers.
        known: training signals and their answers.
        version: version that answered.
        samples_per_s: throughput of a stream.
        latencies_ms: latencies of requests of one sample, sent one after the other.
    """

    held_out: SignalsIO
    known: SignalsIO
    version: int
    samples_per_s: float
    latencies_ms: NDArray[np.float64]


def _query(url: str) -> Served:
    with Client(url) as client:
        held_out, known = _stream(client, "TEST"), _stream(client, "TRAIN")
        version = held_out.versions[-1]
        many = ({"signals": held_out.signals[i % len(held_out.signals)]} for i in range(N_TIMED))
        start_s = time.monotonic()
        errors = [r.error for r in client.stream(MODEL, many) if r.error is not None]
        seconds = time.monotonic() - start_s
        if errors:
            raise RuntimeError(f"{len(errors)} of {N_TIMED} samples failed, the first: {errors[0]}")
        latencies = [
            client.predict(MODEL, signals=held_out.signals[i % len(held_out.signals)][None]).latency_ms
            for i in range(N_SINGLE)
        ]
    return Served(held_out, known, version, N_TIMED / seconds, np.array(latencies))


def _stream(client: Client, part: Literal["TRAIN", "TEST"]) -> SignalsIO:
    io = SignalsIO(client.model(MODEL), part)
    for result in client.stream(MODEL, io.inputs()):
        if result.outputs is None:
            raise RuntimeError(f"signal {result.index} of {part} was not answered: {result.error}")
        io.decode(result.index, result.outputs, result.version)
    return io


def _report(console: Console, served: Served, manifest: Manifest, hot_loaded: list[int]) -> int:
    validation = manifest.metric.value if manifest.metric else float("nan")
    scores = score_codes(served.known, served.held_out, validation)
    parity = max(differences["max_abs"] for differences in manifest.parity.values())
    run_dir = Path(manifest.run_dir)
    plot = run_dir / PLOT_NAME
    draw_overview(plot, served.held_out, served.known, f"{MODEL} version {served.version} of {manifest.run}")

    size = len(served.held_out.codes[0])
    quality = Table(title=f"codes of {size} values; held-out figures through the server")
    for column in ("", "served", f"PCA-{size}, plain", f"PCA-{size}, augmented"):
        quality.add_column(column, justify="left" if not column else "right")
    for name, row in (
        ("validation explained variance", scores.validation),
        ("held-out explained variance", scores.held_out),
        ("held-out 1-NN accuracy", scores.accuracy),
    ):
        quality.add_row(name, f"{row.served:.3f}", f"{row.plain:.3f}", f"{row.augmented:.3f}")
    console.print(quality)

    p50, p99 = np.percentile(served.latencies_ms, (50, 99))
    facts = Table(show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in (
        ("served version", f"{served.version}, of run {manifest.run}, step {manifest.step}"),
        ("loaded during training", f"versions {', '.join(map(str, hot_loaded)) or 'none'}"),
        ("stream", f"{served.samples_per_s:,.0f} samples/s"),
        ("latency of one sample", f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"),
        ("parity with torch", f"maximum {parity:.1e}, in the outputs' units"),
        ("run folder", _shown(run_dir)),
        ("plot", _shown(plot)),
        ("TensorBoard", "make tensorboard"),
    ):
        facts.add_row(name, value)
    console.print(facts)
    return _judge(scores, parity, hot_loaded)


def _judge(scores: Scores, parity: float, hot_loaded: list[int]) -> int:
    ours, pca = scores.held_out.served, scores.held_out.plain
    missed = [
        text
        for met, text in (
            (
                len(hot_loaded) >= MIN_HOT_LOADED,
                f"{len(hot_loaded)} versions loaded during training, expected {MIN_HOT_LOADED} or more",
            ),
            (
                ours >= MIN_EXPLAINED_VARIANCE,
                f"explained variance {ours:.3f}, expected {MIN_EXPLAINED_VARIANCE} or more",
            ),
            (
                ours >= MIN_RATIO_TO_PCA * pca,
                f"{ours / pca:.2f} times PCA's, expected {MIN_RATIO_TO_PCA} or more",
            ),
            (parity <= MAX_PARITY, f"parity error {parity:.1e}, expected {MAX_PARITY:.0e} or less"),
        )
        if not met
    ]
    for text in missed:
        print(f"target missed: {text}", file=sys.stderr)
    if not missed:
        print(f"every target met ({ours / pca:.2f} times the explained variance of PCA on plain signals)")
    return 1 if missed else 0


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


if __name__ == "__main__":
    sys.exit(main())
