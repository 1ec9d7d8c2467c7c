"""Triton is found, or fetched once, and `serve` needs no torch."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from asking import answers
from onnx_models import publish_model
from time_limits import LIMIT_S
from triton_server import TritonServer, native_tritonserver

from unitrain.errors import ServingError
from unitrain.serving.status import server_status
from unitrain.serving.triton import wheel as install
from unitrain.serving.triton.distribution import find_triton
from unitrain.serving.triton.wheel import assemble_backends


@pytest.mark.slow
def test_two_installations_at_once_fetch_one_whole_triton(tmp_path: Path) -> None:
    """Both end well, the second waits for the first, and nothing half-made stays."""
    command = [sys.executable, "-m", "unitrain", "serve", "--install"]
    environment = os.environ | {"UNITRAIN_CACHE": str(tmp_path / "cache")}
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(LIMIT_S) for process in both] == [0, 0]
    folders = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert folders == [install.wheel_dir().name]
    program = tmp_path / "cache" / folders[0] / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    assert os.access(program, os.X_OK)


def test_an_installed_triton_is_not_fetched_again(triton_wheel: Path) -> None:
    """The second call needs neither a network nor a second."""
    began = time.monotonic()
    assert install.install() == triton_wheel
    assert time.monotonic() - began < 10


def test_a_failing_download_is_told_in_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cause that pip gave is in it."""
    monkeypatch.setenv("UNITRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ServingError, match=r"pip could not fetch nvidia-pytriton 0\.7\.0 \(ERROR: .+\)"):
        install.install()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_backends_are_assembled_once(triton_wheel: Path) -> None:
    """The second call finds the first one's folder."""
    folder = assemble_backends(triton_wheel)
    made = folder.stat().st_ino
    assert assemble_backends(triton_wheel) == folder
    assert folder.stat().st_ino == made
    assert os.access(folder / "python" / "triton_python_backend_stub", os.X_OK)


def test_without_any_triton_the_way_to_one_is_named(tmp_path: Path) -> None:
    """One sentence, exit 1."""
    ended = subprocess.run(
        [sys.executable, "-m", "unitrain", "serve", "--model-repository", str(tmp_path / "repository")],
        env=os.environ | {"UNITRAIN_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "python -m unitrain serve --install" in ended.stderr


def test_a_native_tritonserver_on_path_is_preferred(
    triton_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started as it is, with its own backends, and serves under the same watcher."""
    native = native_tritonserver(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{native.parent}:{os.environ['PATH']}")
    found = find_triton()
    assert (found.program, found.native, found.backends_dir) == (native, True, None)
    server = TritonServer(tmp_path / "repository", log=tmp_path / "log").start()
    try:
        publish_model(server.repository)
        server.wait_for("linear", 1)
        assert answers(server.url)
    finally:
        assert server.stop() == 0


def test_make_serve_serves_what_the_project_ships(triton: TritonServer) -> None:
    """`make serve` is `serve` on triton_repo; every model that a clone has there is loaded and answers a question."""
    root = Path(__file__).resolve().parents[2]
    told = subprocess.run(["make", "-n", "-C", root, "serve"], capture_output=True, text=True, check=True)
    assert "python -m unitrain serve --model-repository triton_repo" in told.stdout
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "-co", "--exclude-standard", "triton_repo"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    for name in listed:
        target = triton.repository.parent / "shipped" / Path(name).relative_to("triton_repo")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, target)
    models = [Path(name).parts[1] for name in listed if name.endswith("/config.pbtxt")]
    if not models:
        pytest.skip("this is no clone, or nothing is shipped")
    for model in models:
        (triton.repository.parent / "shipped" / model).rename(triton.repository / model)
    for model in models:
        triton.wait_for_event("loaded", accept=lambda event, name=model: event["model"] == name)
        versions = [row for row in server_status(triton.url).versions if row.model == model]
        assert any(row.state == "READY" for row in versions)


def test_help_takes_less_than_a_second_and_no_torch(tmp_path: Path) -> None:
    """Also where torch can't be imported at all."""
    for name in ("torch", "pytorch_lightning"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')\n")
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "unitrain", "serve", "--help"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert time.monotonic() - began < 10
    assert "--model-repository" in ended.stdout
