"""The model that comes with the repository, and its run: what a fresh clone shows at once."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from commands import ROOT, unitrain
from time_limits import LIMIT_S
from triton_server import TritonServer

from examples.signals_clustering.clustering import purity
from examples.signals_clustering_demo.pretrained import MODEL, RUNS, naming, ship, train
from unitrain.repository.manifest import read_manifest

VERSION_DIR = ROOT / "triton_repo" / MODEL / "1"
(RUN_DIR,) = (ROOT / RUNS).glob("*/*/")
MOST_BYTES = 1_000_000


def answers(version_dir: Path) -> dict[str, np.ndarray]:
    """A version's answers to the shipped golden samples, by output."""
    with np.load(VERSION_DIR / "golden.npz") as golden:
        inputs = {name.removeprefix("inputs/"): golden[name] for name in golden if name.startswith("inputs/")}
    session = onnxruntime.InferenceSession(version_dir / "model.onnx", providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What git tracks of model and run, as a fresh clone has it."""
    shutil.copytree(ROOT / "triton_repo" / MODEL, tmp_path / "clone" / "triton_repo" / MODEL)
    shutil.copytree(ROOT / RUNS, tmp_path / "clone" / RUNS)
    return tmp_path / "clone"


@pytest.mark.parametrize("folder", [VERSION_DIR.parent, ROOT / RUNS], ids=["model", "run"])
def test_model_and_run_are_small_and_tracked(folder: Path) -> None:
    """1 MB at most, and no rule of .gitignore keeps a file of it out."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    if (ROOT / ".git").exists():
        ignored = subprocess.run(
            ["git", "check-ignore", *map(str, files)], cwd=ROOT, capture_output=True, check=False
        )
        assert ignored.returncode == 1, ignored.stdout


def test_neither_names_the_machine_that_made_it() -> None:
    """No absolute path of a project or a home, and no host, in any file's content or name."""
    wrong = ("/tmp/", "/home/", "/root/", "site-packages", str(ROOT))  # noqa: S108 - texts that are looked for
    assert not naming(VERSION_DIR.parent, *wrong)
    assert not naming(ROOT / RUNS, *wrong)
    assert not [path for path in (ROOT / RUNS).rglob("*tfevents*") if path.name.count(".") != 3]
    record = json.loads((RUN_DIR / "run.json").read_text())
    assert (record["host"], record["pid"], record["root"]) == (None, None, ".")
    assert socket.gethostname() not in {str(value) for value in record.values()}


def test_version_and_run_tell_of_each_other() -> None:
    """The manifest names the run that lies beside the example, the run the version."""
    manifest = read_manifest(VERSION_DIR)
    assert manifest is not None
    assert ROOT / manifest.run_dir == RUN_DIR
    record = json.loads((RUN_DIR / "run.json").read_text())
    assert [entry["version"] for entry in record["published"]] == [1]
    done = unitrain("models", "verify", MODEL)
    assert done.returncode == 0, done.stdout + done.stderr


def test_purity_counts_each_clusters_most_frequent_class() -> None:
    """Perfect clusters have 1, one cluster of all the largest class's share."""
    classes = np.array([0, 0, 0, 1, 1, 2])
    assert purity(classes, np.array([5, 5, 5, 2, 2, 0])) == 1
    assert purity(classes, np.zeros(6, int)) == 0.5
    assert purity(classes, np.array([0, 0, 1, 1, 1, 1])) == pytest.approx(4 / 6)


@pytest.mark.slow
def test_fresh_clone_serves_predicts_and_shows_at_once(
    clone: Path, tmp_path: Path, triton_wheel: Path
) -> None:
    """Before any training: golden samples are answered, `runs` lists the run, TensorBoard has its Projector."""
    server = TritonServer(clone / "triton_repo", log=tmp_path / "log", options=("--grace", "0")).start()
    try:
        server.wait_for(MODEL, 1)
        done = unitrain(
            "predict",
            MODEL,
            "--input",
            "golden",
            "--url",
            server.url,
            "--model-repository",
            "triton_repo",
            cwd=clone,
        )
        clustered = subprocess.run(
            [sys.executable, "-m", "examples.signals_clustering.clustering", "--url", server.url, "--model", MODEL],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S,
        )  # fmt: skip
    finally:
        server.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    assert clustered.returncode == 0, clustered.stderr
    ari = {line[:28].strip(): float(line[28:].split()[2]) for line in clustered.stdout.splitlines()[2:]}
    assert ari["served codes, version 1"] > ari["signals as they are"]
    listed = unitrain("runs", "--experiments_dir", str(RUNS), cwd=clone)
    assert RUN_DIR.name in listed.stdout
    board = subprocess.Popen(
        [sys.executable, "-m", "unitrain", "tensorboard", "--port", "0", "--no-browser"],
        cwd=clone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert board.stdout is not None
        said = board.stdout.readline()
    finally:
        board.terminate()
        board.communicate(timeout=LIMIT_S)
    assert f"this is the run in {RUNS}" in said


@pytest.mark.slow
def test_settings_give_the_shipped_model_again(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Trained anew in full, its answers to the golden samples are as near as the machine's arithmetic lets them.

    On the machine that made it the distance is 0. Another processor sums in another order, which training carries
    further: the bound is a tenth of each output's spread.
    """
    project = tmp_path / "project"
    project.mkdir()
    run_dir, version_dir = ship(*train(project), root=tmp_path / "clone")
    shipped, rebuilt = answers(VERSION_DIR), answers(version_dir)
    for name, output in shipped.items():
        distance = float(np.abs(rebuilt[name] - output).max())
        record_property(f"distance of {name}", distance)
        print(f"{name}: {distance:.3g} at most, of a spread of {output.std():.3g}")
        assert distance <= 0.1 * output.std()
    names = [
        {path.relative_to(run).as_posix().rpartition(".")[0] for path in run.rglob("*.json")}
        for run in (run_dir, RUN_DIR)
    ]
    assert names[0] == names[1]
