"""Provenance of a run: its new folder, the project's own code, its git state, the versions of the packages."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from unitrain.atomic_files import full_disk, write_text
from unitrain.class_paths import project_root
from unitrain.errors import RunError, SettingsError, UsageError
from unitrain.file_lock import FileLock
from unitrain.import_aliases import package_of
from unitrain.publish import Lineage
from unitrain.runs import RunFolder
from unitrain.training.parsing.settings_file import read_settings, slug

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "numpy",
    "onnx",
    "onnxruntime",
    "tensorboard",
    "torchmetrics",
    "unitrain",
)


def begin_run(
    experiments_dir: Path,
    experiment: str,
    resolved: str,
    *,
    root: Path,
    seed: int,
    config: Path | None,
    argv: Sequence[str],
) -> RunFolder:
    """Create a run's folder with the resolved settings, a copy of the project's sources and the run's provenance.

    Args:
        experiments_dir: folder of the experiments.
        experiment: name of the experiment.
        resolved: the resolved settings as YAML.
        root: project root.
        seed: `seed_everything`.
        config: settings file; None if the settings came from Python.
        argv: further settings as flags.

    Raises:
        SettingsError: the folder can't be created.
        RunError: the disk is full, or the folder can't be written.
    """
    try:
        run = RunFolder.create(experiments_dir, experiment, slug(argv))
    except RunError as error:
        if full_disk(error) is not None:
            raise
        raise SettingsError(str(error)) from error
    try:
        write_text(run.settings_path, resolved)
        run.update(
            root=str(root),
            seed=seed,
            git=git_state(root),
            sources_sha256=copy_sources(root, run.sources_dir),
            command=["python", "-m", "unitrain", "fit", "--config", str(config or ""), *argv],
            **environment(),
        )
    except OSError as error:
        run.discard()
        raise RunError(f"the run folder {run.path} can't be written: {error.strerror}") from error
    except RunError:
        run.discard()
        raise
    return run


class NullRunFolder(RunFolder):
    """Run folder of the processes other than rank 0 in a distributed training: it writes nothing.

    Rank 0 alone locks and writes the folder; Lightning broadcasts the paths of the checkpoints.
    """

    def __init__(self, experiments_dir: Path, experiment: str) -> None:
        path = experiments_dir / experiment / "of-the-main-process"
        super().__init__(path, {"experiment": experiment}, FileLock(path / "run.lock"))

    def record(self) -> dict[str, Any]:
        """Return an empty record."""
        return {}

    def update(self, **fields: Any) -> None:
        """Do nothing: rank 0 writes the record."""

    def append(self, field: str, entry: Any) -> None:
        """Do nothing: rank 0 writes the record."""

    def close(self, status: str, reason: str) -> None:
        """Do nothing: rank 0 closes the run."""

    def discard(self) -> None:
        """Do nothing: there is no folder to remove."""


def lineage_of(run: RunFolder, settings: str, *, sources_changed: bool = False) -> Lineage:
    """Return the lineage that the manifests of a run's versions record.

    Args:
        run: run folder.
        settings: the resolved settings as YAML.
        sources_changed: the code is no longer the run's, so the hash of the run's sources is omitted.
    """
    record = run.record()
    return Lineage(
        run=f"{run.experiment}/{run.name}",
        run_dir=str(run.path),
        settings_sha256=hashlib.sha256(settings.encode()).hexdigest(),
        sources_sha256=None if sources_changed else record.get("sources_sha256"),
        git_commit=(record.get("git") or {}).get("commit"),
    )


def copy_sources(root: Path, sources_dir: Path) -> str:
    """Copy the project's imported code into a folder, and return the SHA-256 over all of it.

    The copies are of all imported modules with a file below `root`, except those of environments and of
    unitrain itself. They keep their paths relative to `root`. The library's `models` and `datamodules` count as the
    project's where they are below `root`.
    """
    files = sorted({path for module in list(sys.modules.values()) if (path := _own_file(module, root))})
    digest = hashlib.sha256()
    for file in files:
        relative = file.relative_to(root)
        data = file.read_bytes()
        digest.update(f"{relative}\0{len(data)}\0".encode())
        digest.update(data)
        target = sources_dir / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return digest.hexdigest()


def changed_sources(root: Path, sources_dir: Path) -> list[str]:
    """Return the files of a run's code that have changed since the run began, relative to the project root."""
    copies = sorted(p for p in sources_dir.rglob("*.py") if p.is_file())
    changed = []
    for copy in copies:
        relative = copy.relative_to(sources_dir)
        try:
            same = (root / relative).read_bytes() == copy.read_bytes()
        except OSError:
            same = False
        if not same:
            changed.append(str(relative))
    return changed


def environment() -> dict[str, Any]:
    """Return the versions of Python and of the packages, and the number of torch's threads."""
    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return {"versions": versions, "threads": torch.get_num_threads()}


def git_state(root: Path) -> dict[str, Any] | None:
    """Return the commit of the project's checkout and its uncommitted changes; None outside of a checkout."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(root, "diff", "HEAD") or ""
    return {"commit": commit.strip(), "dirty": bool(diff), "diff": diff[:200_000]}


def trusted_root(
    run_dir: Path, record: Mapping[str, Any], *, trust: bool, project: Path | None = None
) -> Path:
    """Return the root of a run's project, from which code will be imported.

    Args:
        run_dir: the run's folder.
        record: content of its run.json.
        trust: accept any root.
        project: root of the user's project; default: the working folder's project.

    Raises:
        UsageError: the root is neither around the run's folder nor in the user's project.
    """
    root = run_root(run_dir, record)
    places = root.resolve(), (project or project_root(Path.cwd())).resolve()
    if trust or run_dir.resolve().is_relative_to(places[0]) or places[0].is_relative_to(places[1]):
        return root
    raise UsageError(
        f"{run_dir}: its code would be imported from {root}, which is neither around the run nor in this project "
        f"({places[1]}); if you trust that code, add --trust (trust=True in Python)"
    )


def run_root(run_dir: Path, record: Mapping[str, Any]) -> Path:
    """Return the root of a run's project.

    It is the project whose `experiments_dir` contains the run, else the project that the run was started in.
    """
    try:
        place = Path(str(read_settings(run_dir / "settings.yaml").get("experiments_dir") or "experiments"))
    except SettingsError:
        place = Path("experiments")
    experiments = run_dir.absolute().parent.parent
    for around in experiments.parents:
        if (
            not place.is_absolute()
            and around / place == experiments
            and project_root(around) == around.resolve()
        ):
            return around.resolve()  # valid after the project was moved or copied
    return Path(str(record.get("root") or experiments.parent))


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout


def _own_file(module: ModuleType, root: Path) -> Path | None:
    name = getattr(module, "__file__", None)
    if not name or package_of(module.__name__) in ("unitrain", "__main__"):
        return None
    if _is_installed(name, str(root)):  # saves thousands of file system calls
        return None
    path = Path(name)
    if not path.is_absolute() or not path.is_file():  # some of torch's modules name a missing file
        return None
    path = path.resolve()
    if path.suffix != ".py" or not path.is_relative_to(root):
        return None
    parts = set(path.relative_to(root).parts)
    return None if parts & {"site-packages", "dist-packages"} else path


def _is_installed(file: str, root: str) -> bool:
    """Return True if a path is certainly in an environment or in Python's own folders."""
    return any(file.startswith(place) and not root.startswith(place) for place in _installed_places())


@cache
def _installed_places() -> tuple[str, ...]:
    return tuple({f"{sysconfig.get_path(kind)}{os.sep}" for kind in ("purelib", "platlib", "stdlib")})
