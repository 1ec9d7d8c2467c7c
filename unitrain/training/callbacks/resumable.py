"""When a training stops by itself, and which of its checkpoints are kept, as a resumed run needs it."""

from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason


class RunStopping(EarlyStopping):
    """Lightning's, whose patience is that of the settings as they are now, not as they were when it was saved.

    Where the module brings one of its own (`configure_callbacks`), that one alone decides.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict | {"patience": self.patience, "stopping_reason_message": None})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say again why, in a run that was interrupted after it had been stopped."""
        if trainer.should_stop and self.wait_count >= self.patience:
            self.stopping_reason = EarlyStoppingReason.PATIENCE_EXHAUSTED
            self.stopping_reason_message = f"{self.monitor} did not improve"

    def _should_skip_check(self, trainer: Trainer) -> bool:
        others = [c for c in trainer.callbacks if isinstance(c, EarlyStopping) and c is not self]  # type: ignore[attr-defined]
        unknown = self.monitor not in trainer.callback_metrics  # RunRecord says so
        return bool(others) or unknown or bool(super()._should_skip_check(trainer))


class RunCheckpoint(ModelCheckpoint):
    """Lightning's, which knows its best one again where the run's folder was moved or renamed.

    It is a class of its own, so that a module's `configure_callbacks` does not take it away: without it nothing
    could be resumed. A validation that did not log the monitored metric saves nothing.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or self.monitor in trainer.callback_metrics:
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = {
            key: here(state_dict.get(key, ""))
            for key in ("best_model_path", "kth_best_model_path", "last_model_path")
        }
        best = {here(path): score for path, score in state_dict.get("best_k_models", {}).items()}
        super().load_state_dict(state_dict | paths | {"best_k_models": best, "dirpath": self.dirpath})
        self.current_score = state_dict.get("current_score")  # Lightning saves it and does not load it
