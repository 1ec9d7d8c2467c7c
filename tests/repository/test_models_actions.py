"""`models` compares, verifies, repeats and removes versions."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx_models import linear_model, linear_signature, publish_model
from triton_server import TritonServer

from unitrain.atomic_files import sha256_of
from unitrain.cli import main
from unitrain.repository import Repository, model_config
from unitrain.repository.manifest import Manifest, Metric, read_manifest
from unitrain.repository.onnx_session import run_onnx

N = 3


def publish(repository: Repository, scale: float, value: float) -> int:
    """A version of y = scale * x with manifest and golden samples."""
    config = model_config(
        "linear", linear_signature(N), max_batch_size=64, num_versions=2, max_queue_delay_microseconds=100
    )

    with repository.new_version("linear", config) as staged:
        model = linear_model(staged.path / "model.onnx", scale, N)
        inputs = {"x": np.arange(2.0 * N, dtype=np.float32).reshape(2, N)}
        outputs = run_onnx(model, inputs)
        np.savez(staged.path / "golden.npz", **{"inputs/x": inputs["x"], "outputs/y": outputs["y"]})
        Manifest(
            model="linear",
            version=staged.number,
            published_at="2026-01-02T03:04:05+00:00",
            run="lines/2026-01-02_03-00-00",
            run_dir=str(repository.root.parent / f"run-{staged.number}"),
            step=10 * staged.number,
            epoch=staged.number,
            weights="ema",
            signature=linear_signature(N),
            sha256=sha256_of(model),
            golden_sha256=sha256_of(staged.path / "golden.npz"),
            settings_sha256=str(staged.number),
            metric=Metric("val_loss", value, "min"),
            parity={"y": {"max_abs": 0.0, "max_rel": 0.0}},
        ).write(staged.path)
    return staged.number


@pytest.fixture
def two(tmp_path: Path) -> Repository:
    """Two versions of `linear`, with the settings of the runs that they came from."""
    repository = Repository(tmp_path / "repository")
    for number, (scale, value) in enumerate(((2.0, 0.5), (3.0, 0.25)), start=1):
        run_dir = tmp_path / f"run-{number}"
        run_dir.mkdir()
        (run_dir / "settings.yaml").write_text(f"model: {{hidden: 8, lr: 0.{number}}}\n")
        (run_dir / "run.json").write_text(json.dumps({"status": "finished", "experiment": "lines"}))
        publish(repository, scale, value)
    return repository


def models(repository: Repository, *words: str) -> int:
    return main(["models", *words, "--model-repository", str(repository.root)])


def test_diff_tells_settings_metrics_and_weights(two: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    """Only what differs, and by how much."""
    assert models(two, "diff", "linear", "1", "2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"] == {"model.lr": [0.1, 0.2]}
    assert told["metrics"]["val_loss"] == [0.5, 0.25]
    assert told["lineage"]["step"] == [10, 20]
    assert told["weights"] == [{"name": "scale", "shape": [], "max_abs": 1.0, "relative": 0.5}]
    assert models(two, "diff", "linear", "1", "2") == 0
    shown = capsys.readouterr().out
    assert "1 weights differ, 0 are equal bit by bit" in shown
    assert "model.lr" in shown


def test_verify_passes_what_was_published(two: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    """Hashes, checker and golden samples, of every version."""
    assert models(two, "verify", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [(t["version"], t["name"], t["passed"]) for t in told] == [
        (version, name, True) for version in (1, 2) for name in ("sha256", "onnx.checker", "golden")
    ]


def test_verify_names_the_check_that_a_damaged_version_fails(
    two: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another graph in the place of the published one; a file that is none."""
    path = two.version_dir("linear", 1) / "model.onnx"
    linear_model(path, 5.0, N)
    path_2 = two.version_dir("linear", 2) / "model.onnx"
    path_2.write_bytes(path_2.read_bytes()[:50])
    assert models(two, "verify", "linear", "--json") == 1
    told = {(t["version"], t["name"]): t for t in json.loads(capsys.readouterr().out)}
    assert [told[1, name]["passed"] for name in ("sha256", "onnx.checker", "golden")] == [False, True, False]
    assert "in the file and" in told[1, "golden"]["detail"]
    assert [told[2, name]["passed"] for name in ("sha256", "onnx.checker", "golden")] == [False, False, False]


def test_rollback_publishes_an_earlier_version_under_a_new_number(
    two: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files are those of then, the manifest says from which; the configuration stays as it is."""
    config = two.config_path("linear").read_bytes()
    assert models(two, "rollback", "linear", "1") == 0
    assert "published linear version 3, a copy of version 1" in capsys.readouterr().out
    first, third = (two.version_dir("linear", n) for n in (1, 3))
    for name in ("model.onnx", "golden.npz"):
        assert (first / name).read_bytes() == (third / name).read_bytes()
    before, after = read_manifest(first), read_manifest(third)
    assert before is not None
    assert after is not None
    assert after.rolled_back_from == {"version": 1, "newest": 2}
    same = {"version": 1, "published_at": before.published_at, "rolled_back_from": None}
    assert replace(after, **same) == before
    assert two.config_path("linear").read_bytes() == config
    assert models(two) == 0
    assert "(version 1 again)" in capsys.readouterr().out


def test_a_damaged_version_is_not_rolled_back_to(two: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    """It would be served as if it were proven."""
    path = two.version_dir("linear", 1) / "model.onnx"
    path.write_bytes(path.read_bytes() + b"x")
    assert models(two, "rollback", "linear", "1") == 1
    assert "version 1 is damaged, so it is not published again: sha256" in capsys.readouterr().err
    assert two.versions("linear") == [1, 2]


def test_prune_leaves_what_is_kept_and_what_may_be_loading(
    two: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default five; never fewer than those served and two more."""
    for _ in range(6):
        publish(two, 2.0, 0.5)
    then = time.time() - 120
    for number in two.versions("linear"):
        os.utime(two.version_dir("linear", number), (then, then))
    assert models(two, "prune", "linear") == 0
    assert "linear: removed 1, 2, 3; it has 4, 5, 6, 7, 8" in capsys.readouterr().out
    assert models(two, "prune", "--keep", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"linear": [4]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["diff", "linear", "1"], "expected `diff NAME A B`"),
        (["rollback", "linear"], "expected `rollback NAME VERSION`"),
        (["prune", "--keep", "0"], "--keep must be at least 1"),
    ],
)
def test_wrong_words_are_answered_with_the_right_form(
    two: Repository, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """Exit code 2 and one sentence."""
    assert models(two, *words) == 2
    assert message in capsys.readouterr().err


def test_a_live_server_is_listed_and_verified(
    triton: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two newest are served and answer the golden samples; another graph under a version is found out."""
    repository = Repository(triton.repository)
    for scale in (2.0, 3.0, 4.0):
        number = publish(repository, scale, 0.5)
    triton.wait_for("linear", number)
    publish_model(triton.repository, "single", n=None)
    triton.wait_for("single", 1)
    assert models(repository, "--url", triton.url, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(v["version"], v["served"]) for v in listed if v["model"] == "linear"] == [
        (1, False),
        (2, True),
        (3, True),
    ]
    assert models(repository, "verify", "linear", "--url", triton.url, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [t["passed"] for t in told if t["name"] == "served"] == [None, True, True]
    # A golden file of other answers: what is served is not what was published.
    golden = repository.version_dir("linear", 3) / "golden.npz"
    golden.write_bytes((repository.version_dir("linear", 1) / "golden.npz").read_bytes())
    assert models(repository, "verify", "linear", "3", "--url", triton.url) == 1
    assert "FAILED" in capsys.readouterr().out
