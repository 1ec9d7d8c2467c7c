"""`doctor` looks at the real machine, and what it finds wrong comes with what to do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from unitrain import doctor as diagnosis
from unitrain.cli import main
from unitrain.doctor import diagnose
from unitrain.errors import ServingError
from unitrain.serving.triton.system_processes import command_lines


def test_this_machine_can_train_and_the_findings_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Python, packages, torch (imported in a process of its own), processor, disk, shared memory, Triton."""
    assert main(["doctor", "--json", "--no-start"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"]
    by_name = {finding["name"]: finding for finding in printed["findings"]}
    assert list(by_name) == ["python", "packages", "torch", "processor", "disk", "shm", "triton"]
    assert "torch 2" in by_name["packages"]["text"]
    assert "threads" in by_name["torch"]["text"]
    assert all(f["todo"] or f["status"] == "ok" for f in printed["findings"])


def test_triton_is_really_started(triton_wheel: Path) -> None:
    """It was ready, and is gone again."""
    found = diagnosis.look_at_start()
    assert (found.status, found.name) == ("ok", "serving")
    assert "ready after" in found.text


def test_a_doctor_that_is_ended_leaves_no_server(triton_wheel: Path, tmp_path: Path) -> None:
    """`timeout 5 python -m unitrain doctor` ends the Triton that it has started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "unitrain", "doctor"], env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    deadline = time.monotonic() + 120
    while not _mentioning(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _mentioning(tmp_path)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert _mentioning(tmp_path) == []
    assert list(tmp_path.glob("unitrain-*")) == []


def test_triton_that_does_not_start_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is the sentence of `serve`, without Triton's log."""
    (tmp_path / "tritonserver").write_text("#!/bin/sh\necho 'error: no libcuda' >&2; exit 3\n")
    (tmp_path / "tritonserver").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = diagnosis.look_at_start()
    assert (found.status, found.name) == ("warn", "serving")
    assert found.text.startswith("Triton does not start: Triton did not start: error: no libcuda; see ")
    assert "\n" not in found.text


def _mentioning(path: Path) -> list[str]:
    """The command lines that name a folder."""
    return [words for words in command_lines().values() if str(path) in words]


def test_torch_that_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python said of it is in the finding; the doctor itself goes on."""
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch_cpu.so: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    [found] = diagnose(["torch"])
    assert found.status == "bad"
    assert "libtorch_cpu.so" in found.text
    assert found.todo


def test_host_that_triton_cannot_run_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is the sentence of `serve`; training works all the same."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    reason = ServingError("the Triton wheel needs glibc 2.35 or newer, this system has 2.31; use a newer one")

    def refuse() -> None:
        raise reason

    monkeypatch.setattr("unitrain.serving.triton.host_requirements.check_host", refuse)
    [found] = diagnose(["triton"])
    assert (found.status, found.text) == ("warn", str(reason))


def test_triton_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it; it is not tried to start."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setenv("UNITRAIN_CACHE", str(tmp_path / "cache"))
    [found] = diagnose(["triton"])
    assert found.status == "warn"
    assert "serve --install" in found.todo
    assert not (tmp_path / "cache").exists()


def test_little_disk_and_shared_memory_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's default of 64 MB, and a disk that is nearly full."""
    usage = SimpleNamespace(free=60 << 20, total=64 << 20)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    found = {finding.name: finding for finding in diagnose(["disk", "shm"])}
    assert found["shm"].status == found["disk"].status == "warn"
    assert "--shm-size" in found["shm"].todo
    assert "60 MB" in found["shm"].text
