"""`serve status` and the metrics tell what a server does."""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from asking import ask, stubs
from onnx_models import linear_model, publish_broken, publish_model
from triton_server import TritonServer
from tritonclient.utils import InferenceServerException

from unitrain.atomic_files import sha256_of
from unitrain.repository.manifest import Manifest, Metric
from unitrain.serving.server_registry import runtime_dir
from unitrain.serving.status import server_status
from unitrain.signature import Signature


def _status(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "unitrain", "serve", "status", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def _with_manifest(root: Path) -> int:
    def fill(path: Path) -> None:
        linear_model(path)
        Manifest(
            model="linear", version=1, published_at="2026-01-01T00:00:00+00:00", run="lines/first", run_dir="",
            step=40, epoch=2, weights="ema", signature=Signature((), (), batched=True), sha256=sha256_of(path),
            metric=Metric("val_loss", 0.25, "min"),
        ).write(path.parent)  # fmt: skip

    return publish_model(root, fill=fill)


def test_status_tells_versions_origins_counts_times_memory_and_last_errors(triton: TritonServer) -> None:
    """Each figure is of this server: requests that were sent, a version that was broken, stubs that run."""
    _with_manifest(triton.repository)
    triton.wait_for("linear", 1)
    before = server_status(triton.url).versions[0].requests
    for _ in range(7):
        ask(triton.url, np.ones((2, 3)))
    with pytest.raises(InferenceServerException):
        ask(triton.url, np.ones((1, 4)))
    broken = publish_broken(triton.repository)
    triton.wait_for_event("failed")
    ended = _status("--url", triton.url, "--json")
    assert ended.returncode == 0
    status = json.loads(ended.stdout)
    assert (status["ready"], status["repository"], status["pid"]) == (
        True,
        str(triton.repository),
        triton.pid,
    )
    assert (status["triton"], status["release"]) == ("2.51.0", "24.10")
    assert "CVE-2026-47627" in status["advisories"]
    assert "CVE-2025-23310" not in status["advisories"], "HTTP is on a socket of this user's alone"
    good = next(row for row in status["versions"] if row["version"] == "1")
    assert good["state"] == "READY"
    assert good["origin"]["run"] == "lines/first"
    assert (good["origin"]["step"], good["origin"]["metric"]) == (40, {"name": "val_loss", "value": 0.25})
    assert good["requests"] >= before + 7
    assert good["rows"] >= 14
    assert 0 < good["compute_ms"] < 1000
    assert 0 <= good["queue_ms"] < 1000
    assert len(stubs(triton.triton_pid)) == 1
    assert 5e6 < good["memory_bytes"] < status["memory_bytes"] < 1e9
    bad = next(row for row in status["versions"] if row["version"] == str(broken))
    assert "Protobuf" in bad["error"]["reason"]


def test_status_is_a_table_for_a_person(triton: TritonServer) -> None:
    """Server, versions, errors."""
    _with_manifest(triton.repository)
    triton.wait_for("linear", 1)
    publish_broken(triton.repository)
    triton.wait_for_event("failed")
    shown = _status("--url", triton.url).stdout
    assert f"Triton 2.51.0 at {triton.url}" in shown
    assert re.search(r"advisories +CVE-2026-47625, ", shown)
    assert re.search(r"linear +1 +READY +lines/first +40 +val_loss 0.25", shown)
    assert re.search(r"last errors\nlinear 2: .*model\.onnx", shown)


def test_status_of_no_server_is_one_sentence() -> None:
    """Exit 1, and what to do."""
    ended = _status("--url", "127.0.0.1:1")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: there is no server at 127.0.0.1:1")
    assert len(ended.stderr.splitlines()) == 1


def test_a_strangers_server_tells_what_it_tells_everybody(triton: TritonServer, tmp_path: Path) -> None:
    """Without its record there is no way to its socket: versions and counts are there, memory and errors are not."""
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    ask(triton.url, np.ones((2, 3)))
    (record,) = runtime_dir().glob(f"*_{triton.url.rpartition(':')[2]}.json")
    record.rename(tmp_path / "record")
    status = server_status(triton.url)
    assert [(v.model, v.version, v.state) for v in status.versions] == [("linear", "1", "READY")]
    assert status.versions[0].requests >= 1
    assert status.memory_bytes is None
    assert "CVE-2025-23310" in status.advisories, "who knows how it is open"


def test_prometheus_metrics_count_the_requests(triton: TritonServer) -> None:
    """At the address that `ready` tells, by model and version."""
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    ask(triton.url, np.ones((2, 3)))
    with urllib.request.urlopen(triton.metrics_url, timeout=5) as answer:  # noqa: S310 - our own server
        text = answer.read().decode()
    assert re.search(r'nv_inference_request_success\{model="linear",version="1"\} [1-9]', text)
