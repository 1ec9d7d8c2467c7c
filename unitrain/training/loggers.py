"""The loggers and the profiler of a training: the user's own, with TensorBoard beside them."""

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
    """The loggers of a training: TensorBoard first, then those of `trainer.logger`.

    TensorBoard is left out only by `logger: false`, or where the user brings a TensorBoardLogger.

    Args:
        given: `trainer.logger`.
        run_dir: the run's folder, into which TensorBoard's events go.
        console: told which loggers there are, unless they are the default.
        purge_step: step from which on a resumed run's events are written again; None: there are none.
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
        default_hp_metric=False,  # the summaries tell what the run's settings came to
        # What the interrupted process logged after its checkpoint will be logged again.
        purge_step=purge_step,
    )
    return [ours, *theirs]


def profiler_into(given: Any, run_dir: Path) -> Any:
    """The trainer's profiler, which writes its report into the run's folder unless it has a place of its own."""
    profiler = PROFILERS[given.lower()]() if isinstance(given, str) and given.lower() in PROFILERS else given
    if isinstance(profiler, Profiler) and profiler.dirpath is None and profiler.filename is None:
        profiler.dirpath, profiler.filename = run_dir / "profile", "report"
    return profiler


def say_profile(profiler: Any, console: Console) -> None:
    """Say where a profiler's report lies, if it has written one."""
    folder = Path(getattr(profiler, "dirpath", None) or "/nowhere")
    found = sorted(folder.glob("*.txt")) if getattr(profiler, "filename", None) else []
    if found:
        console.say(f"the profiler's report is {found[-1]}")


def check_trainer(arguments: dict[str, Any]) -> None:
    """Refuse what Lightning's Trainer takes and no training of unitrain can be.

    Raises:
        SettingsError: `trainer.barebones` is on.
    """
    if arguments.get("barebones"):
        raise SettingsError(
            "trainer.barebones: it measures Lightning alone, without loggers, checkpoints and validation; remove it"
        )
