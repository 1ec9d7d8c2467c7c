"""A README's commands, run as they stand, in a copy of the project where nothing has been trained.

What differs from typing them is only this: servers and TensorBoards listen on free ports, so the server's address is
appended where a command takes one; trainings end early (`--trainer.max_epochs 1`; 102 where one of 100 goes on) but for
those that a test gives flags of their own; placeholders such as RUN are filled in; `models` names versions that exist;
and what EXEMPT names is left out.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from time_limits import LIMIT_S
from triton_server import TritonServer

SHORT, LONGER = "--trainer.max_epochs 1", "--trainer.max_epochs 102"
EXEMPT = {
    "make ": "sets up and runs what CI does",
    "pip ": "the environment is there",
    ". .venv/bin/activate": "the environment is there",
    "python -m unitrain fit --resume last": "needs a run that was killed: tests/training/test_resume.py",
    "python -m unitrain models promote": "needs a run that holds a version back: tests/publish/test_policy.py",
    "python -m examples.signals_clustering_demo.pretrained": "trained in full by test_pretrained.py",
}
PLACEHOLDERS = {"RUN": "last", "F": "examples/curve_fitting/settings.yaml"}


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
        trainings: flags of the next trainings, one each; after that they are SHORT.
        server: once one runs.
        ran: what was typed, with what it printed.
    """

    project: Path
    log_dir: Path
    trainings: list[str] = field(default_factory=list)
    server: TritonServer | None = None
    ran: dict[str, str] = field(default_factory=dict)

    def read(self, readme: Path, *trainings: str) -> None:
        """Type all commands of a README, one after the other.

        Args:
            readme: its file.
            trainings: flags of its first trainings, one each; "" is one in full.
        """
        self.trainings = list(trainings)
        for command in [command for block in sh_blocks(readme.read_text()) for command in block]:
            self.type(command)
        assert self.ran

    def said(self, part: str) -> str:
        """What the only command printed that has this part."""
        (said,) = (said for command, said in self.ran.items() if part in command)
        return said

    def type(self, command: str) -> None:
        """Run a command; what serves goes on in the background, all else must end well."""
        if reason_exempt(command):
            return
        typed, self.ran[command] = command, ""
        for name, text in {**PLACEHOLDERS, **self._two_runs()}.items():
            command = re.sub(rf"(?<=\s){name}(?=\s|$)", text, command)
        command = self._with_versions(command)
        if command.startswith("python -m unitrain serve"):
            self.serve()
        elif command.startswith("python -m unitrain tensorboard"):
            self._look(command)
        else:
            self.ran[typed] = self._run(self._adapted(command))

    def serve(self) -> None:
        """The server of the project's repository; a second one is not started."""
        if self.server is None:
            log = self.log_dir / "triton.log"
            self.server = TritonServer(self.project / "triton_repo", log=log, options=("--grace", "0"))
            self.server.start()

    def _adapted(self, command: str) -> str:
        if "unitrain fit" in command:
            flags = self.trainings.pop(0) if self.trainings else LONGER if "--resume" in command else SHORT
            return f"{command} {flags}"
        asks = "unitrain predict" in command
        for module in re.findall(r"python -m (examples[\w.]*)", command):
            source = self.project / f"{module.replace('.', '/')}.py"
            asks = asks or (source.is_file() and '"--url"' in source.read_text())
        if asks:
            self.serve()
            assert self.server is not None
            return f"{command} --url {self.server.url}"
        return command

    def _with_versions(self, command: str) -> str:
        """Name versions that exist: how many a training publishes, and so keeps, depends on the machine's speed."""
        found = re.match(r"(python -m unitrain models (?:show|diff|rollback) (\w+))((?: \d+)+)", command)
        if not found:
            return command
        folders = (self.project / "triton_repo" / found[2]).glob("[1-9]*")
        versions = sorted(int(folder.name) for folder in folders)
        wanted = len(found[3].split())
        return " ".join([found[1], *map(str, versions[-wanted:]), command[found.end() :].strip()]).strip()

    def _run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {command}"],
            cwd=self.project, env=self._env(), capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"$ {command}\n{done.stdout}\n{done.stderr}"
        for config in (self.project / "triton_repo").glob("*/config.pbtxt") if self.server else ():
            newest = max(int(path.name) for path in config.parent.glob("[1-9]*"))
            self.server.wait_for(config.parent.name, newest) if self.server else None
        return done.stdout

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
            process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0

    def _two_runs(self) -> dict[str, str]:
        runs = sorted((self.project / "experiments").glob("*/*/run.json"))
        return {"RUN_A": str(runs[0].parent), "RUN_B": str(runs[-1].parent)} if runs else {}

    def _env(self) -> dict[str, str]:
        return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
