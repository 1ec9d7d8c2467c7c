"""Loggers and profiler of a training: the user's, and TensorBoard in addition."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger
from pytorch_lightning.profilers import AdvancedProfiler, Profiler, PyTorchProfiler, SimpleProfiler

from unitrain.errors import SettingsError
from unitrain.training.console import Console

PROFILERS: dict[str, type[SimpleProfiler | AdvancedProfiler | PyTorchProfiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def loggers_of(given: Any, run_dir: Path, console: Console, purge_step: int | None) -> list[Logger] | bool:
    """Return the loggers of a training: TensorBoard first, then those of `trainer.logger`.

    TensorBoard is omitted for `logger: false`, or if the user has a TensorBoardLogger.

    Args:
        given: value of `trainer.logger`.
        run_dir: the run's folder, for TensorBoard's events.
        console: prints the loggers, unless they are the default.
        purge_step: first step that a resumed run logs again; None for a new run.
    """
    if given is False:
        return False
    theirs = [] if given in (None, True) else list(given) if isinstance(given, Sequence) else [given]
    names = ", ".join(type(logger).__name__ for logger in theirs)
    if any(isinstance(logger, TensorBoardLogger) for logger in theirs):
        console.say(
            f"loggers: {names}; the settings' own TensorBoardLogger takes the place of the run folder's"
        )
        return theirs
    if theirs:
        console.say(
            f"loggers: TensorBoard in the run folder, and {names}; trainer.logger=false turns all off"
        )
    ours = TensorBoardLogger(
        run_dir.parent,
        name="",
        version=run_dir.name,
        default_hp_metric=False,  # the summaries have the run's settings and best metric
        # Values that the interrupted process logged after its checkpoint are logged again.
        purge_step=purge_step,
    )
    return [ours, *theirs]


def profiler_into(given: Any, run_dir: Path) -> Any:
    """Return the trainer's profiler; its report goes to the run's folder unless it has a path already."""
    profiler = PROFILERS[given.lower()]() if isinstance(given, str) and given.lower() in PROFILERS else given
    if isinstance(profiler, Profiler) and profiler.dirpath is None and profiler.filename is None:
        profiler.dirpath, profiler.filename = run_dir / "profile", "report"
    return profiler


def say_profile(profiler: Any, console: Console) -> None:
    """Print the path of a profiler's report, if there is one."""
    folder = Path(getattr(profiler, "dirpath", None) or "/nowhere")
    found = sorted(folder.glob("*.txt")) if getattr(profiler, "filename", None) else []
    if found:
        console.say(f"the profiler's report is {found[-1]}")


def check_trainer(arguments: dict[str, Any]) -> None:
    """Refuse arguments of Lightning's Trainer that unitrain can't support.

    Raises:
        SettingsError: `trainer.barebones` is on.
    """
    if arguments.get("barebones"):
        raise SettingsError(
            "trainer.barebones: it measures Lightning alone, without loggers, checkpoints and validation; remove it"
        )
