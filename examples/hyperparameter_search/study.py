"""An Optuna study on one file, shared by workers anywhere, any of which may be killed.

A worker holds a lock for as long as it lives, and its trials name it. A trial that runs for a worker whose lock
no process holds is lost: it is marked failed, and another one takes its place.
"""

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from unitrain.errors import SettingsError
from unitrain.file_lock import FileLock, is_locked, locked

PrunerName = Literal["median", "hyperband", "none"]
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_WAIT_S = 0.5
_LOCK_TIMEOUT_S = 120.0


class JournalLock:
    """The journal's lock, which ends with its holder: Optuna's own would outlive a killed one by 30 s."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path)

    def acquire(self) -> bool:
        """Wait for the lock.

        Raises:
            TimeoutError: another process kept it for two minutes.
        """
        if not self._lock.acquire(_LOCK_TIMEOUT_S):
            raise TimeoutError(f"{self._lock.path} was held for more than {_LOCK_TIMEOUT_S:.0f} s")
        return True

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()


@dataclass(frozen=True)
class SharedStudy:
    """A study and what its workers agree by.

    Attributes:
        study: Optuna's.
        path: path of the journal file.
        worker: this process's name, which its trials carry.
    """

    study: optuna.Study
    path: Path
    worker: str

    @classmethod
    def open(
        cls, path: Path, *, mode: str, pruner: PrunerName, epochs: int, seed: int, index: int
    ) -> "SharedStudy":
        """The study of a journal file, made where there is none.

        Args:
            path: path of the file.
            mode: min or max.
            pruner: pruner that ends unpromising trials.
            epochs: epochs of a complete trial.
            seed: seed of the sampler; each worker and each resumption draws other numbers.
            index: number of this worker among those of one command.

        Raises:
            SettingsError: the file holds a study of another direction, or can't be read.
        """
        direction = {"min": "minimize", "max": "maximize"}[mode]
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            journal = JournalFileBackend(str(path), lock_obj=JournalLock(_beside(path, "lock")))  # type: ignore[arg-type]
            storage = JournalStorage(journal)
            with locked(_beside(path, "claims"), _LOCK_TIMEOUT_S):
                study = optuna.create_study(
                    study_name="search", storage=storage, direction=direction, load_if_exists=True
                )
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(f"--study {path}: {' '.join(str(error).split())}") from error
        if study.direction.name.lower() != direction:
            raise SettingsError(
                f"--study {path} searches for the {study.direction.name.lower()[:3]}imum, the settings for the {mode}imum"
            )
        worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        draws = seed + len(study.get_trials(deepcopy=False)) + 10_000 * index
        study.sampler = optuna.samplers.TPESampler(seed=draws)
        study.pruner = _pruner(pruner, epochs)
        return cls(study, path, worker)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """A block in which this worker's trials count as running."""
        folder = _beside(self.path, "workers")
        folder.mkdir(exist_ok=True)
        lock = FileLock(folder / self.worker)
        lock.acquire()
        try:
            yield
        finally:
            lock.release()
            lock.path.unlink(missing_ok=True)

    def next_trial(self, total: int) -> optuna.Trial | None:
        """A trial to do; None when `total` have ended.

        While others still run the last ones it waits: one of them may be lost.
        """
        while True:
            with locked(_beside(self.path, "claims"), _LOCK_TIMEOUT_S):
                self.fail_lost()
                trials = self.study.get_trials(deepcopy=False)
                running = [t for t in trials if t.state is TrialState.RUNNING]
                ended = [t for t in trials if counts(t)]
                if len(ended) + len(running) < total:
                    trial = self.study.ask()
                    trial.set_user_attr("worker", self.worker)
                    return trial
            if not running:
                return None
            time.sleep(_WAIT_S)

    def fail_lost(self) -> list[int]:
        """Mark the trials of workers that are gone as failed; their numbers."""
        lost = []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get("worker", "")
            # A worker that died between creation and signing leaves a trial without a name: creation is locked.
            if not worker or not is_locked(_beside(self.path, "workers") / worker):
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                lost.append(trial.number)
        return lost

    def enqueue_first(self, values: dict[str, Any]) -> None:
        """Try these values first, if nothing has been tried yet."""
        with locked(_beside(self.path, "claims"), _LOCK_TIMEOUT_S):
            if not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(values)


def counts(trial: FrozenTrial) -> bool:
    """Return whether a trial counts: it ended by itself, and if it failed, it has the reason."""
    return trial.state in ENDED or (trial.state is TrialState.FAIL and "failure" in trial.user_attrs)


def _pruner(name: PrunerName, epochs: int) -> optuna.pruners.BasePruner:
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=max(1, epochs // 16), max_resource=max(1, epochs))
    return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=max(1, epochs // 8))


def _beside(path: Path, name: str) -> Path:
    return path.with_name(f"{path.name}.{name}")
