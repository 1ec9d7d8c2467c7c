"""Publishing policy: decide which verified versions replace the one that is served.

`best` publishes a version unless the newest one in the repository is at least as good on the same validation
data. Within one run, an equal metric is sufficient. `every` publishes all versions.
"""

import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

from unitrain.atomic_files import fsync_dir, fsync_tree
from unitrain.errors import PublishRefused
from unitrain.repository import Repository
from unitrain.repository.layout import HELD_BACK_NAME
from unitrain.repository.manifest import Manifest
from unitrain.repository.ranking import Comparison

Policy = Literal["best", "every"]


class HeldBack(PublishRefused):
    """Refusal of a verified version that would replace an equal or better one.

    Attributes:
        comparison: comparison of its metric with that of the published version.
        short: message without the ways to publish it.
    """

    def __init__(self, message: str, comparison: Comparison, short: str) -> None:
        super().__init__("policy", message)
        self.comparison = comparison
        self.short = short


def is_held_back(manifest: Manifest, comparison: Comparison | None) -> bool:
    """Return True if `policy: best` holds a version back, by its comparison with the newest one."""
    if comparison is None or comparison.outcome in (None, "better"):
        return False
    return comparison.outcome == "worse" or comparison.run != manifest.run


def hold_back(folder: Path, manifest: Manifest, comparison: Comparison, repository: Repository) -> HeldBack:
    """Keep a verified version in its run's folder, and return the refusal to raise.

    Args:
        folder: folder with the version's files.
        manifest: manifest in that folder.
        comparison: comparison with the published version.
        repository: repository that the version was intended for.
    """
    metric = manifest.metric
    mine = f"{metric.name} {metric.value:.6g}" if metric else "it"
    relation = "only equals" if comparison.outcome == "equal" else "is worse than"
    theirs = f"the {comparison.value:.6g} of version {comparison.version} (run {comparison.run})"
    short = f"{mine} {relation} {theirs}"
    try:
        _keep(folder, manifest)
    except OSError as error:
        ways = f"the files could not be kept ({error.strerror}); train with `--publish.policy every` to publish every version"
    else:
        command = promote_command(manifest.model, Path(manifest.run_dir), repository.root)
        ways = (
            f"`{command}` publishes it anyway; `--publish.policy every` publishes every version of a training"
        )
    return HeldBack(f"{short}; {ways}", comparison, short)


def promote_command(model: str, run_dir: Path, repository_dir: Path) -> str:
    """Return the command that publishes a run's held-back version, for use in the working folder."""
    words = ["python", "-m", "unitrain", "models", "promote", model, "--run", _from_here(run_dir)]
    if _from_here(repository_dir) != "triton_repo":
        words += ["--model-repository", _from_here(repository_dir)]
    return shlex.join(words)


def _keep(folder: Path, manifest: Manifest) -> None:
    """Replace the files that the run held back before."""
    run_dir = Path(manifest.run_dir)
    target, new, old = (run_dir / f"{prefix}{HELD_BACK_NAME}" for prefix in ("", ".new-", ".old-"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(folder, new)
    replace(manifest, version=0).write(new)  # it has a number once it is published
    fsync_tree(new)
    if target.exists():
        target.rename(old)
    new.rename(target)
    fsync_dir(run_dir)
    shutil.rmtree(old, ignore_errors=True)


def _from_here(path: Path) -> str:
    try:
        relative = os.path.relpath(path)
    except OSError:  # the working folder is gone
        return str(path)
    return str(path) if relative.startswith("..") else relative
