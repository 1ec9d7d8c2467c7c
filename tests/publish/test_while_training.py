"""Publishing while a training runs, and by hand afterwards."""

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import unitrain
from unitrain.cli import main
from unitrain.errors import SettingsError
from unitrain.repository import Repository, read_config
from unitrain.repository.manifest import read_manifest

EACH = {"publish.every_n_validations": 1, "embeddings": None, "summaries": None}


def test_publishing_at_every_validation_changes_no_bit_of_the_training(settings: Path) -> None:
    """The last checkpoint with publishing at each of four validations is that without any."""
    on = unitrain.fit(settings, EACH, quiet=True)
    off = unitrain.fit(settings, EACH | {"publish": None}, quiet=True)
    assert on.published  # of requests that wait, the latest wins: at least the last one
    first, second = (torch.load(r.last_checkpoint, weights_only=True) for r in (on, off))
    for state in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, second[state][name]) for name, value in first[state].items())
    assert str(first["optimizer_states"]) == str(second["optimizer_states"])


def test_outcomes_are_in_the_record_in_tensorboard_and_on_the_console(
    settings: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Versions with their parity and metric then and now; a refusal with its gate and reason."""
    overrides = EACH | {"model.class_path": "models.small.Explodes", "early_stopping": None}
    result = unitrain.fit(settings, overrides)
    record = json.loads((result.run_dir / "run.json").read_text())
    last = record["published"][-1]
    assert set(last["parity"]["y"]) == {"max_abs", "max_rel"}
    told = capsys.readouterr().err
    assert f"published points version {last['version']}: step {last['step']}, val_loss" in told
    assert "was not published: finite_weights:" in told
    events = EventAccumulator(str(result.run_dir))
    events.Reload()
    tags = events.Tags()
    assert "publish/parity_max_abs/y" in tags["scalars"]
    versions = [(event.step, event.value) for event in events.Scalars("publish/version")]
    assert versions == [(entry["step"] - 1, entry["version"]) for entry in record["published"]]
    texts = [t.tensor_proto.string_val[0].decode() for t in events.Tensors("publish/outcome/text_summary")]
    assert sum("hold NaN" in text for text in texts) == len(record["refused"]) >= 1


@pytest.fixture
def run(settings: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run that published nothing, seen from the project's root."""
    result = unitrain.fit(settings, EACH | {"publish.every_n_validations": 100, "publish": None}, quiet=True)
    monkeypatch.chdir(project)
    return result.run_dir


def test_a_checkpoint_is_published_by_hand(
    run: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Averaged or raw, best or last, with the run's lineage, and the metric of just these weights."""
    assert main(["export", "--run", "last"]) == 0
    assert "published points version 1: step" in capsys.readouterr().out
    arguments = ["export", "--run", run.name, "--checkpoint", "last", "--weights", "raw", "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["version"], told["weights"], told["step"], told["metric"]) == (2, "raw", 32, None)
    repository = Repository(project / "triton_repo")
    first = read_manifest(repository.version_dir("points", 1))
    assert first is not None
    record = json.loads((run / "run.json").read_text())
    assert first.metric is not None
    assert (first.weights, first.metric.value, first.step) == (
        "ema",
        record["best"]["value"],
        record["best"]["step"],
    )
    assert first.run == f"points/{run.name}"
    assert first.sources_sha256 == record["sources_sha256"]


def test_what_can_not_be_exported_is_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint that is not there, a run that is none."""
    (run / "checkpoints" / "best.ckpt").unlink()
    assert main(["export", "--run", "last"]) == 1
    assert "has no checkpoint `best`; it has last" in capsys.readouterr().err
    assert main(["export", "--run", "nothing"]) == 1
    assert "there is no run `nothing`" in capsys.readouterr().err


def test_an_edited_configuration_is_kept_and_a_conflict_refused_before_the_first_epoch(
    settings: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The console shows what is kept; where the settings changed too, the difference and the way out."""
    one = {**EACH, "trainer.max_epochs": 1}
    unitrain.fit(settings, one, quiet=True)
    path = Repository(project / "triton_repo").config_path("points")
    path.write_text(path.read_text().replace("max_batch_size: 1024", "max_batch_size: 8"))
    unitrain.fit(settings, one, quiet=True)
    assert (
        "is kept as it was edited: max_batch_size: 8 there, 1024 by the settings" in capsys.readouterr().err
    )
    assert read_config(path).max_batch_size == 8
    runs = len(list((project / "experiments" / "points").iterdir()))
    with pytest.raises(SettingsError, match=r"edited by hand.*8 there, 16 by the settings"):
        unitrain.fit(settings, one | {"publish.model_config.max_batch_size": 16}, quiet=True)
    assert len(list((project / "experiments" / "points").iterdir())) == runs
