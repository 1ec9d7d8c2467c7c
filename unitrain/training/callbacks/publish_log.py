"""Log of a training's publications: run.json, console and TensorBoard."""

import queue
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger

from unitrain.errors import UnitrainError
from unitrain.publish import HeldBack, Outcome, Request, figures_of, gate_of, outcome_text
from unitrain.runs import RunFolder
from unitrain.training.console import Console

_RECORDED = ("version", "step", "epoch", "metric", "previous", "comparison", "parity", "model")
"""Fields of a manifest that run.json repeats."""


class PublishLog:
    """Log the outcome of each publication.

    `record` runs on the publishing thread and writes run.json and the console. `flush` runs on the training
    thread, which alone may write TensorBoard's events.

    Args:
        run: run folder; its record gets `published`, `held_back`, `refused` and `served`.
        repository_dir: model repository, recorded with each version.
        console: prints a line for each outcome.

    Attributes:
        published: versions published by this process, in order.
        held_back: steps held back by this process, in order.
        failure: error of the last version that was neither published nor held back.
        published_steps: steps of all versions of the run.
        held_back_steps: steps of all versions that the run held back.
    """

    def __init__(self, run: RunFolder, repository_dir: Path, console: Console) -> None:
        self._run = run
        self._repository_dir = repository_dir
        self._console = console
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._logged_steps: dict[int, int] = {}  # TensorBoard's step, by optimizer step
        self.published: list[int] = []
        self.held_back: list[int] = []
        self.failure: Exception | None = None
        record = run.record()
        self.published_steps = {entry["step"] for entry in record.get("published") or ()}
        self.held_back_steps = {entry["step"] for entry in record.get("held_back") or ()}

    def set_logged_step(self, step: int, logged_step: int) -> None:
        """Set the step at which TensorBoard shows the outcome of an optimizer step."""
        self._logged_steps[step] = logged_step

    def is_settled(self, step: int) -> bool:
        """Return True if the weights of a step were published or held back, also before an interruption."""
        return step in self.published_steps or step in self.held_back_steps

    def record(self, outcome: Outcome) -> None:
        """Write an outcome into run.json and print it."""
        self._outcomes.put(outcome)
        manifest, error = outcome.manifest, outcome.error
        again = isinstance(error, HeldBack) and bool(self.held_back)
        good = error is None if outcome.served is None else outcome.served.passed is not False
        write_line = self._console.say if good else self._console.warn
        try:
            if isinstance(error, HeldBack):
                self.held_back.append(outcome.request.step)
                self.held_back_steps.add(outcome.request.step)
                self._run.append("held_back", _held_back_entry(outcome.request, error))
            elif manifest is None:
                self.failure = error
                self._run.append("refused", _refused_entry(outcome))
            elif outcome.served is not None:
                self._run.append("served", {"version": manifest.version} | asdict(outcome.served))
            else:
                self.published.append(manifest.version)
                self.published_steps.add(manifest.step)
                entry = manifest.to_json()
                kept = {key: entry[key] for key in _RECORDED}
                self._run.append("published", kept | {"repository": str(self._repository_dir)})
            write_line(outcome_text(outcome, again=again))
        except UnitrainError as trouble:  # a full disk must not end the training
            self._console.warn(str(trouble))

    def flush(self, loggers: Iterable[Logger]) -> list[Outcome]:
        """Write the outcomes since the last call to TensorBoard, and return them."""
        writers = [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]
        outcomes = []
        while not self._outcomes.empty():
            outcome = self._outcomes.get()
            outcomes.append(outcome)
            step = self._logged_steps[outcome.request.step]
            for writer in writers:
                for name, value in figures_of(outcome).items():
                    writer.add_scalar(f"publish/{name}", value, step)
                writer.add_text("publish/outcome", outcome_text(outcome), step)
        return outcomes

    def summary(self) -> str | None:
        """Return a final line if the run published nothing because everything was held back; None otherwise."""
        record = self._run.record()
        held = record.get("held_back")
        if not held or record.get("published"):
            return None
        which = "the only candidate was" if len(held) == 1 else f"all {len(held)} candidates were"
        return f"nothing was published, since {which} held back: {held[-1]['reason']}"


def _refused_entry(outcome: Outcome) -> dict[str, Any]:
    request, error = outcome.request, outcome.error or RuntimeError("no reason was given")
    return {"step": request.step, "epoch": request.epoch, "gate": gate_of(error), "reason": str(error)}


def _held_back_entry(request: Request, error: HeldBack) -> dict[str, Any]:
    return {
        "step": request.step,
        "epoch": request.epoch,
        "metric": asdict(request.metric) if request.metric else None,
        "version": error.comparison.version,
        "value": error.comparison.value,
        "reason": str(error),
    }
