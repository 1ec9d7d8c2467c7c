"""Trainings with drawn settings, interrupted at drawn events: the resumed run ends like the uninterrupted one."""

import signal
from pathlib import Path
from typing import Any

import pytest
from resume_draws import Draw, check, drawn, warm_up
from slow_cases import slow_after

SEED = 1
DRAWS = (3, 9, 10, 13, 28, 39)

ISSUE: dict[str, Any] = {
    "experiment": "issue",
    "seed_everything": 5,
    "model": {
        "class_path": "models.drawn.Drawn",
        "init_args": {
            "frozen_norm": True, "dropout": "2d", "optimizer": "nesterov", "scheduler": "onecycle", "estimated": True,
        },
    },
    "data": {
        "class_path": "datamodules.drawn.DrawnData",
        "init_args": {"loader": "dataset", "workers": 2, "persistent": True, "source": "all"},
    },
    "trainer": {
        "max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, "gradient_clip_val": 0.5,
        "enable_progress_bar": False,
        "callbacks": [
            {"class_path": "models.drawn.Interrupter"},
            {"class_path": "pytorch_lightning.callbacks.LearningRateMonitor"},
        ],
    },
    "embeddings": None, "summaries": None, "publish": None,
}  # fmt: skip
TORCHS = ISSUE | {"data": ISSUE["data"] | {"init_args": ISSUE["data"]["init_args"] | {"loader": "torch"}}}
KNOWN = {
    "the issue's settings, SIGTERM in mid-epoch": Draw(-1, ISSUE, [("batch_end", 9, signal.SIGTERM)]),
    "OneCycleLR over estimated_stepping_batches, killed": Draw(
        -2, TORCHS, [("batch_end", 9, signal.SIGKILL)]
    ),
    "persistent workers of torch's DataLoader, SIGTERM": Draw(-3, TORCHS, [("batch_end", 9, signal.SIGTERM)]),
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a first training imports is there for all."""
    warm_up(tmp_path_factory.mktemp("warm") / "project")


@pytest.mark.parametrize("known", slow_after(1, KNOWN))
def test_settings_that_once_resumed_differently_resume_exactly(
    known: str, tmp_path: Path, warm: None
) -> None:
    """Weights, average, optimizer, scheduler, metrics, and each logged point once with its value."""
    verdict = check(KNOWN[known], tmp_path)
    assert verdict.differences == []
    assert (verdict.exact, verdict.reasons) == (True, [])


@pytest.mark.parametrize("number", slow_after(1, DRAWS))
def test_drawn_settings_resume_exactly(number: int, tmp_path: Path, warm: None) -> None:
    """Loaders, samplers, augmentation, schedulers, accumulation, hooks, metrics, early stopping, events and signals."""
    verdict = check(drawn(SEED, number), tmp_path)
    assert verdict.differences == []
    assert verdict.exact, verdict.reasons
