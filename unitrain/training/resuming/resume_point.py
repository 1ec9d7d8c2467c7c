"""What a run goes on from: its folder, its newest sound checkpoint, its sources as they were."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from unitrain.class_paths import project_root
from unitrain.errors import RunError, SettingsError, UsageError
from unitrain.runs import RunSummary, find_run, list_runs, read_summary
from unitrain.training.checkpoint import load_plain
from unitrain.training.console import Console
from unitrain.training.parsing.settings_parser import read_settings

_CONTENT = ("state_dict", "global_step", "epoch", "loops")
"""What a checkpoint of fit always has."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Attributes:
        run_dir: the run's folder.
        checkpoint: its newest sound checkpoint.
        root: the project root that it was started from.
        finished: whether it has come to its end already.
        step: optimizer steps done.
        epoch: whole epochs done.
        logged_step: where the curves of TensorBoard go on.
        clean: it was written between two batches or epochs, so that nothing was pending.
        cut_short: the training had ended within an epoch.
    """

    run_dir: Path
    checkpoint: Path
    root: Path
    finished: bool
    step: int
    epoch: int
    logged_step: int
    clean: bool
    cut_short: bool


def find_resume_point(
    text: str,
    experiments_dir: Path,
    experiment: str | None,
    console: Console,
    *,
    trust: bool = False,
    project: Path | None = None,
) -> ResumePoint:
    """The run that a user means by `--resume`, and the checkpoint to resume from.

    Args:
        text: a folder, a run's name, or `last`: the newest unfinished run that has a checkpoint.
        experiments_dir: where names are looked for.
        experiment: for `last`, look at that experiment only.
        console: told which run it is, and which checkpoints were skipped.
        trust: accept any project root that the run names.
        project: the user's project; default: the working folder's.

    Raises:
        RunError: there is no such run, or it has no complete checkpoint.
    """
    if text != "last":
        return point_of(read_summary(find_run(text, experiments_dir)), console, trust=trust, project=project)
    runs = list_runs(experiments_dir, experiment)
    if not runs:
        of = f" of {experiment}" if experiment else ""
        raise RunError(f"--resume last: there is no run{of} in {experiments_dir}; start one without --resume")
    unfinished = [run for run in runs if run.unfinished]
    point = newest_point(unfinished, console, trust=trust, project=project)
    if point is None:
        ended = [run for run in runs if run.status in ("finished", "stopped")]
        point = newest_point(ended, console, trust=trust, project=project)
    if point is None:
        point = point_of((unfinished or runs)[-1], console, trust=trust, project=project)
    console.say(f"--resume last is {point.run_dir}")
    return point


def newest_point(
    runs: Sequence[RunSummary], console: Console, *, trust: bool = False, project: Path | None = None
) -> ResumePoint | None:
    """Where the newest of these runs that has a complete checkpoint resumes; None if none has."""
    for run in reversed(runs):
        try:
            return point_of(run, console, trust=trust, project=project)
        except RunError as error:
            console.warn(f"skipped: {error}")
    return None


def point_of(
    summary: RunSummary, console: Console, *, trust: bool = False, project: Path | None = None
) -> ResumePoint:
    """Where a run resumes.

    Raises:
        RunError: it has no complete checkpoint, or no settings.
    """
    path = summary.path
    if not (path / "settings.yaml").is_file():
        raise RunError(
            f"{path} has no settings.yaml, so it can't be resumed; start a new run without --resume"
        )
    for name in ("last", "best"):
        checkpoint = path / "checkpoints" / f"{name}.ckpt"
        if not checkpoint.is_file():
            continue
        fault = unsound(checkpoint)
        try:
            content = read_checkpoint(checkpoint) if fault is None else {}
        except RunError as error:
            fault = str(error)
        if fault is None:
            try:
                content = read_checkpoint(checkpoint)
                return _point(
                    summary,
                    checkpoint,
                    content,
                    trusted_root(path, summary.record, trust=trust, project=project),
                )
            except (RunError, KeyError, TypeError, ValueError) as error:
                fault = str(error) if isinstance(error, RunError) else "it is no checkpoint of a training"
        console.warn(f"{checkpoint} is damaged ({fault}); looking for an earlier one")
    raise RunError(
        f"{path} has no complete checkpoint, so there is nothing to resume; start a new run without --resume"
    )


def _point(summary: RunSummary, checkpoint: Path, content: Mapping[str, Any], root: Path) -> ResumePoint:
    loop = content["loops"]["fit_loop"]
    own = loop["state_dict"].get("unitrain", {})
    cut_short = bool(own.get("cut_short"))  # then a validation within an accumulated step may have its number
    return ResumePoint(
        summary.path,
        checkpoint,
        root,
        summary.status in ("finished", "stopped"),
        int(content["global_step"]),
        int(loop["epoch_progress"]["current"]["processed"]),
        _logged_step(loop) + cut_short,
        bool(own),
        cut_short,
    )


def trusted_root(
    run_dir: Path, record: Mapping[str, Any], *, trust: bool, project: Path | None = None
) -> Path:
    """The root of a run's project, whose code will be imported.

    Args:
        run_dir: the run's folder.
        record: its run.json.
        trust: accept any root.
        project: the user's project; default: the working folder's.

    Raises:
        UsageError: the root is neither around the run's folder nor in the user's project.
    """
    root = root_of(run_dir, record)
    places = root.resolve(), (project or project_root(Path.cwd())).resolve()
    if trust or run_dir.resolve().is_relative_to(places[0]) or places[0].is_relative_to(places[1]):
        return root
    raise UsageError(
        f"{run_dir}: its code would be imported from {root}, which is neither around the run nor in this project "
        f"({places[1]}); if you trust that code, add --trust (trust=True in Python)"
    )


def root_of(run_dir: Path, record: Mapping[str, Any]) -> Path:
    """The project that a run is of: the one in whose experiments it lies, else the one that it was started in."""
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
            return around.resolve()  # also where it was moved or copied with all its project
    return Path(str(record.get("root") or experiments.parent))


def _logged_step(loop: dict[str, Any]) -> int:
    """Lightning's loggers count batches, of which each may hold steps of several optimizers."""
    batches = loop["epoch_loop.batch_progress"]["total"]
    in_a_batch = bool(batches["completed"] < batches["processed"])  # saved before its batch was counted
    return int(loop["epoch_loop.state_dict"]["_batches_that_stepped"]) + in_a_batch


def unsound(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint file, None where it is whole.

    torch writes zip files, which have a checksum (CRC-32) of every tensor; each is verified.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return str(error) or type(error).__name__
    return None if broken is None else f"the checksum of {broken} is wrong"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU, never anything that could run code.

    Raises:
        RunError: it holds something else than plain data.
    """
    try:
        content = load_plain(path)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(f"{path} can't be read as a checkpoint: {reason}") from error
    missing = [key for key in _CONTENT if not isinstance(content, dict) or key not in content]
    if missing:
        raise RunError(f"{path} is an incomplete checkpoint: it has no {', '.join(missing)}")
    return content


def changed_sources(root: Path, sources_dir: Path) -> list[str]:
    """The files of a run's own code that are no longer as they were, relative to the project root."""
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


def take_weights(module: nn.Module, checkpoint: Path, kind: str, console: Console) -> None:
    """Begin with the weights of another run's checkpoint, as far as they fit.

    Args:
        kind: "ema" or "raw".
        console: told of every name that is missing, left over, or of another shape.

    Raises:
        SettingsError: none of them fits.
    """
    content = read_checkpoint(checkpoint)
    weights = (
        content["state_dict"] if kind == "ema" else content.get("current_model_state", content["state_dict"])
    )
    own = module.state_dict()
    fitting = {name: w for name, w in weights.items() if name in own and own[name].shape == w.shape}
    if not fitting:
        raise SettingsError(
            f"--init-from: none of the weights of {checkpoint} fits this model; it is another one"
        )
    module.load_state_dict(fitting, strict=False)
    for what, names in (
        ("stay as they were initialised", own.keys() - fitting.keys()),
        ("are not in this model, or of another shape", weights.keys() - fitting.keys()),
    ):
        if names:
            console.warn(f"--init-from: {', '.join(sorted(names))} {what}")
    console.say(f"begins with {len(fitting)} of {len(own)} weights ({kind}) of {checkpoint}")
