"""`check` and `fit` have the same verdict on the same settings: both would train, or both refuse."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from unitrain.cli import main

M, S = "models.odd", "models.shapes"
ROWS = {"data": {"class_path": "models.shapes.Rows"}}
FAST = {"trainer": {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}}
OFF = {"publish": None, "embeddings": None, "summaries": None}


def of(model: str, **sections: Any) -> dict[str, Any]:
    """Settings of one of the modules, without what the case does not need."""
    trainer = FAST["trainer"] | (sections.pop("trainer", None) or {})
    return ROWS | OFF | {"model": {"class_path": model}, "trainer": trainer} | sections


RIGHT = {
    "as it is": of(f"{S}.Right"),
    "published": of(f"{S}.Right", publish={"keep": 3}),
    "keeps outputs": of(f"{M}.KeepsOutputs", publish={}),
    "no validation step": of(f"{M}.NoValidationStep", early_stopping=None, trainer={"enable_checkpointing": False}),
    "logs nothing, needs nothing": of(f"{M}.LogsNothing", early_stopping=None, trainer={"enable_checkpointing": False}),
    "no validation batches": of(f"{S}.Right", trainer={"limit_val_batches": 0}),
    "no sanity check": of(f"{S}.Right", trainer={"num_sanity_val_steps": 0}),
    "broadcast on purpose": of(f"{S}.Purposeful"),
    "logged late": of(f"{S}.LogsLate", monitor={"metric": "val_score"}),
    "logged in training": of(f"{S}.LogsInTraining", monitor={"metric": "train_loss"}),
    "another optimizer": of(f"{S}.Right", optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}),
    "a profiler": of(f"{S}.Right", trainer={"profiler": "simple"}),
    "accumulation": of(f"{S}.Right", trainer={"accumulate_grad_batches": 2}),
    "a callback": of(f"{S}.Right", trainer={"callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}]}),
    "no logger": of(f"{S}.Right", trainer={"logger": False}),
    "branches, not published": of(f"{M}.Branches"),
    "arguments": of(f"{M}.HyperParameters") | {"model": {"class_path": f"{M}.HyperParameters", "init_args": {"width": 2}}},
    "fit layout": {"fit": of(f"{S}.Right")},
}  # fmt: skip
WRONG = {
    "lazy": of(f"{M}.Lazy"),
    "branches": of(f"{M}.Branches", publish={}),
    "fails in a step": of(f"{M}.FailsInStep"),
    "fails in validation": of(f"{M}.FailsInValidation"),
    "fails in setup": of(f"{M}.FailsInSetup"),
    "no optimizer": of(f"{M}.NoOptimizer"),
    "a NaN loss": of(f"{M}.NanLoss"),
    "no such metric": of(f"{S}.Right", monitor={"metric": "val_accuracy"}),
    "logs nothing": of(f"{M}.LogsNothing"),
    "two outputs of one name": of(f"{M}.TwoOutputsOfOneName", publish={}),
    "broadcast": of(f"{S}.ByHand"),
    "broadcast in validation": of(f"{S}.OnlyInValidation"),
    "a missing argument": of(f"{M}.HyperParameters"),
    "an __init__ that refuses": of("") | {"model": {"class_path": f"{M}.HyperParameters", "init_args": {"width": 0}}},
    "no such class": of(f"{M}.Nothing"),
    "no class": of("") | {"model": {"hidden": 3}},
    "no model": {key: value for key, value in of("").items() if key != "model"},
    "a data module as the model": of("models.shapes.Rows"),
    "a model as the data module": of(f"{S}.Right", data={"class_path": f"{S}.Right"}),
    "unknown section": of(f"{S}.Right", pubish={}),
    "unknown section that is off": of(f"{S}.Right", pubish=None),
    "unknown key": of(f"{S}.Right", trainer={"max_epoch": 1}),
    "wrong type": of(f"{S}.Right", ema={"decay": "much"}),
    "out of range": of(f"{S}.Right", ema={"decay": 2}),
    "name of the model": of(f"{S}.Right", publish={"model": "a/b"}),
    "name of the experiment": of(f"{S}.Right", experiment="../up"),
    "no such axis": of(f"{S}.Right", publish={"dynamic_axes": {"x": {3: "a"}}}),
    "another subcommand": {"test": of(f"{S}.Right")},
    "barebones": of(f"{S}.Right", trainer={"barebones": True}),
    "profiler": of(f"{S}.Right", trainer={"profiler": "simpel"}),
    "accelerator": of(f"{S}.Right", trainer={"accelerator": "abacus"}),
    "no such callback": of(f"{S}.Right", trainer={"callbacks": [{"class_path": "pytorch_lightning.callbacks.Tmer"}]}),
    "an argument of a callback": of(
        f"{S}.Right", trainer={"callbacks": [{"class_path": "pytorch_lightning.callbacks.EarlyStopping"}]}
    ),
    "a link to nowhere": of(f"{S}.Right", links={"data.nothing": "model.init_args.width"}),
    "a logger without its folder": of(f"{S}.Right", trainer={"logger": {"class_path": "CSVLogger"}}),
    "Triton's fields": of(f"{S}.Right", publish={"config": {"nothing": 1}}),
    "batch size of the loader": of(f"{S}.Right", data={"class_path": f"{S}.Rows", "init_args": {"nan_at": "x"}}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using a target size .*Size..1.....:UserWarning")
@pytest.mark.filterwarnings("ignore:.*have no `validation_step`")
@pytest.mark.parametrize(("case", "good"), [(c, True) for c in RIGHT] + [(c, False) for c in WRONG])
def test_check_and_fit_agree(case: str, good: bool, settings: Path) -> None:
    """The exit code is 0 from both, or not 0 from both."""
    settings.write_text(yaml.safe_dump(RIGHT[case] if good else WRONG[case], sort_keys=False))
    checked = main(["check", "--config", str(settings)])
    trained = main(["fit", "--config", str(settings), "--quiet"])
    assert (checked == 0, trained == 0) == (good, good)
