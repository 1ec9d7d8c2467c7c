"""Early stopping and the best checkpoint of Lightning, made resumable."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason


class ResumableEarlyStopping(EarlyStopping):
    """Early stopping by the current settings, rather than by those of the checkpoint.

    An EarlyStopping from the module's `configure_callbacks` replaces this one.
    """

    @property
    def state_key(self) -> str:
        """Return the key that checkpoints have for this callback, which is older than the name of its class."""
        return str(super().state_key).replace(type(self).__qualname__, "RunStopping", 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        current = self.patience
        super().load_state_dict(state_dict | {"stopping_reason_message": None})
        self.patience = current

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the reason of a run that was interrupted after it had been stopped."""
        if trainer.should_stop and self.wait_count >= self.patience:
            self.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
            self.stopping_reason_message = f"{self.monitor} did not improve"

    def _should_skip_check(self, trainer: Trainer) -> bool:
        others = [c for c in trainer.callbacks if isinstance(c, EarlyStopping) and c is not self]  # type: ignore[attr-defined]
        unknown = self.monitor not in trainer.callback_metrics  # RunRecord prints a warning
        return bool(others) or unknown or bool(super()._should_skip_check(trainer))


class ResumableModelCheckpoint(ModelCheckpoint):
    """Best checkpoint of a run, also after the run's folder was moved or renamed.

    Its class differs from ModelCheckpoint, since Lightning drops callbacks of the same class as those from
    the module's `configure_callbacks`. A validation that did not log the monitored metric saves nothing.
    """

    @property
    def state_key(self) -> str:
        """Return the key that checkpoints have for this callback, which is older than the name of its class."""
        return str(super().state_key).replace(type(self).__qualname__, "RunCheckpoint", 1)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def moved(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = {
            key: moved(state_dict.get(key, ""))
            for key in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        best = {moved(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})
        self.current_score = state_dict.get("current_score")  # Lightning saves it and does not load it
