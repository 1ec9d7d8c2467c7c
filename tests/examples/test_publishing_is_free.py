"""Publishing changes no bit of what an example's training becomes; UNITRAIN_ALL_EXAMPLES=1 tries every settings file."""

import os
from pathlib import Path

import pytest
import torch
from commands import ROOT

import unitrain

ALL = os.environ.get("UNITRAIN_ALL_EXAMPLES") == "1"
"""All settings take minutes; without, those that differ most: one tensor, two optimizers, a seed as input."""
FEW = ("curve_fitting", "generative", "uncertainty")
SETTINGS = sorted(
    path for path in (ROOT / "examples").glob("*/settings*.yaml") if ALL or path.parent.name in FEW
)
SHORT = {
    "trainer.max_epochs": 2,
    "trainer.limit_train_batches": 4,
    "trainer.limit_val_batches": 2,
    "embeddings": None,
    "summaries": None,
    "early_stopping": None,
}


@pytest.mark.slow
@pytest.mark.parametrize("path", SETTINGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_last_checkpoint_with_publishing_at_each_validation_is_that_without(
    path: Path, tmp_path: Path
) -> None:
    """Weights, average and optimizers, to the bit."""
    short = SHORT | {"experiments_dir": str(tmp_path / "experiments")}
    publish = {"publish.repository": str(tmp_path / "repository"), "publish.every_n_validations": 1}
    on = unitrain.fit(path, short | publish, quiet=True)
    off = unitrain.fit(path, short | {"publish": None}, quiet=True)
    assert on.published
    first, second = (torch.load(run.last_checkpoint, weights_only=True) for run in (on, off))
    for state in ("state_dict", "current_model_state"):
        assert first[state].keys() == second[state].keys()
        assert all(torch.equal(value, second[state][name]) for name, value in first[state].items())
    assert str(first["optimizer_states"]) == str(second["optimizer_states"])
