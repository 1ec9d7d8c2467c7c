"""The commands of every README, run as they stand, in a copy of the project where nothing has been trained.

What differs from typing them is only this: servers and TensorBoards listen on free ports, so the server's address is
appended where a command takes one; trainings end early (`--trainer.max_epochs 1`; 102 where one of 100 goes on), but
for the first one of the main README, whose versions later commands name; placeholders such as RUN are filled in; and what EXEMPT names is left out.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from triton_server import TritonServer
from whole_way import ROOT

READMES = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*/README.md"))]
SHORT, LONGER = "--trainer.max_epochs 1", "--trainer.max_epochs 102"
EXEMPT = {
    "make ": "sets up and runs what CI does",
    "pip ": "the environment is there",
    ". .venv/bin/activate": "the environment is there",
    "python -m unitrain fit --resume last": "needs a run that was killed: tests/training/test_resume.py",
    "python -m examples.signals_clustering.pretrained": "trained in full by test_pretrained.py",
}
PLACEHOLDERS = {"RUN": "last", "F": "examples/curve_fitting/settings.yaml"}
WITHIN_S = 600


def sh_blocks(text: str) -> list[list[str]]:
    """The commands of each ```sh block: lines joined where they go on, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    joined = [re.sub(r"\\\n\s*", "", block).splitlines() for block in blocks]
    lines = [[re.sub(r"(^|\s+)#.*$", "", line).strip() for line in block] for block in joined]
    return [[part for line in block for part in line.split(" && ") if part] for block in lines]


def reason_exempt(command: str) -> str | None:
    """Why a command is not run; None where it is."""
    return next((reason for text, reason in EXEMPT.items() if f"{command} ".startswith(text)), None)


@dataclass
class Terminal:
    """A copied project, where commands are typed one after the other.

    Attributes:
        project: its folder.
        log_dir: where the server's log goes.
        train_once_in_full: whether the first training is as long as it says.
    """

    project: Path
    log_dir: Path
    train_once_in_full: bool = False
    server: TritonServer | None = None
    ran: list[str] = field(default_factory=list)

    def type(self, command: str) -> None:
        """Run a command; what serves goes on in the background, all else must end well."""
        if reason_exempt(command):
            return
        self.ran.append(command)
        for name, text in {**PLACEHOLDERS, **self._two_runs()}.items():
            command = re.sub(rf"(?<=\s){name}(?=\s|$)", text, command)
        if command.startswith("python -m unitrain serve"):
            self.serve()
        elif command.startswith("python -m unitrain tensorboard"):
            self._look(command)
        else:
            self._run(self._adapted(command))

    def serve(self) -> None:
        """The server of the project's repository; a second one is not started."""
        if self.server is None:
            log = self.log_dir / "triton.log"
            self.server = TritonServer(self.project / "triton_repo", log=log, options=("--grace", "0"))
            self.server.start()

    def _adapted(self, command: str) -> str:
        if "unitrain fit" in command:
            if self.train_once_in_full:
                self.train_once_in_full = False
                return command
            return f"{command} {LONGER if '--resume' in command else SHORT}"
        asks = "unitrain predict" in command
        for module in re.findall(r"python -m (examples[\w.]*)", command):
            source = self.project / f"{module.replace('.', '/')}.py"
            asks = asks or (source.is_file() and '"--url"' in source.read_text())
        if asks:
            self.serve()
            assert self.server is not None
            return f"{command} --url {self.server.url}"
        return command

    def _run(self, command: str) -> None:
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"],
            cwd=self.project, env=self._env(), capture_output=True, text=True, timeout=WITHIN_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        for config in (self.project / "triton_repo").glob("*/config.pbtxt") if self.server else ():
            newest = max(int(path.name) for path in config.parent.glob("[1-9]*"))
            self.server.wait_for(config.parent.name, newest, timeout_s=60) if self.server else None

    def _look(self, command: str) -> None:
        process = subprocess.Popen(
            [*command.split(), "--port", "0", "--no-browser"],
            cwd=self.project, env=self._env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if "TensorBoard: http://" in line:
                    break
            assert "TensorBoard: http://" in said, f"$ {command}\n{said}"
        finally:
            process.terminate()
            process.communicate(timeout=60)
        assert process.returncode == 0

    def _two_runs(self) -> dict[str, str]:
        runs = sorted((self.project / "experiments").glob("*/*/run.json"))
        return {"RUN_A": str(runs[0].parent), "RUN_B": str(runs[-1].parent)} if runs else {}

    def _env(self) -> dict[str, str]:
        return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def terminal(tmp_path: Path, triton_wheel: Path) -> Iterator[Terminal]:
    """A copy of what git tracks of the project for examples, as a fresh clone has it, and a points.csv of one's own."""
    project = tmp_path / "project"
    for name in ("models", "datamodules", "examples"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "triton_repo").mkdir()
    for path in (ROOT / "triton_repo").glob("pretrained*"):
        shutil.copytree(path, project / "triton_repo" / path.name)
    (project / "points.csv").write_text("x\n-2\n0\n3\n")
    typed = Terminal(project, tmp_path)
    try:
        yield typed
    finally:
        if typed.server is not None:
            typed.server.stop()


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_commands_of_a_readme_run_as_they_stand(readme: Path, terminal: Terminal) -> None:
    """Each ends well, one after the other, as a person would type them on a fresh clone."""
    terminal.train_once_in_full = readme.parent == ROOT
    blocks = sh_blocks(readme.read_text())
    assert blocks
    for block in blocks:
        for command in block:
            terminal.type(command)
    assert terminal.ran


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_files_that_a_readme_links_to_are_there(readme: Path) -> None:
    """Pictures and pages beside it."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme.read_text())
    assert not [link for link in links if not (readme.parent / link).exists()]


def test_commands_of_a_block_are_found() -> None:
    """Continued lines are one command, comments none; blocks of other languages are passed over."""
    text = "```sh\na b \\\n    c   # why\n# nothing\nd && e\n```\n```python\nx\n```\n"
    assert sh_blocks(text) == [["a b c", "d", "e"]]
