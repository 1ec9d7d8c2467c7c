"""Settings of earlier releases train, and runs of earlier releases are resumed, evaluated, exported and compared."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import unitrain
from unitrain.cli import main
from unitrain.runs import compare_runs
from unitrain.settings_renames import RENAMED
from unitrain.training.parsing import settings_file

FORMER = {
    "client": None,
    "embeddings": None,
    "summaries": None,
    "ema": {"warm_up": False},
    "publish": {
        "golden": 2,
        "strict": True,
        "config": {"instance_group": [{"count": 2, "kind": "KIND_CPU"}]},
    },
}


FILE_NAMES = (
    "client is now client_io, ema.warm_up is now ema.decay_warmup, "
    "publish.strict is now publish.fail_on_error, publish.config is now publish.model_config.overrides, "
    "publish.golden is now publish.golden.samples"
)


def value_of(settings: Any, name: str) -> Any:
    """Return the value under a dotted name."""
    for part in name.split("."):
        settings = settings[part]
    return settings


def as_an_earlier_release_wrote(path: Path) -> None:
    """Rewrite a run's settings under the former names."""
    settings = yaml.safe_load(path.read_text())
    former = {name: value_of(settings, new) for name, new in RENAMED.items()}
    for group in ("golden", "model_config", "onnx", "server", "tolerance", "fail_on_error"):
        del settings["publish"][group]
    del settings["client_io"], settings["ema"]["decay_warmup"]
    former["publish.require_improvement"] = False
    for name, value in former.items():
        section, _, key = name.rpartition(".")
        (settings[section] if section else settings)[key] = value
    path.write_text(yaml.safe_dump(settings))


@pytest.fixture(autouse=True)
def _nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process may have shown the same line."""
    monkeypatch.setattr(settings_file, "_warned", set())


def test_former_settings_from_a_file_to_a_resumed_run(
    settings: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One run through every command that reads settings, with one line each time."""
    monkeypatch.chdir(settings.parent.parent)
    content = yaml.safe_load(settings.read_text())
    del content["client_io"]
    settings.write_text(yaml.safe_dump(content | FORMER))
    flags = ["--publish.absolute-tolerance", "0.5", "--trainer.max_epochs", "1"]
    assert main(["fit", "--config", str(settings), *flags, "--quiet"]) == 0
    printed = capfd.readouterr().err.splitlines()
    assert {line for line in printed if "until 0.4" in line} == {
        f"warning: {settings}: {FILE_NAMES}; the former names work until 0.4",
        "warning: flags: publish.absolute_tolerance is now publish.tolerance.absolute; the former name works until 0.4",
    }
    (run,) = Path("experiments/points").iterdir()
    resolved = yaml.safe_load((run / "settings.yaml").read_text())
    assert resolved["ema"]["decay_warmup"] is False
    assert (resolved["publish"]["golden"]["samples"], resolved["publish"]["fail_on_error"]) == (2, True)
    assert resolved["publish"]["tolerance"]["absolute"] == 0.5
    assert "count: 2" in Path("triton_repo/points/config.pbtxt").read_text()

    as_an_earlier_release_wrote(run / "settings.yaml")
    evaluated = unitrain.evaluate(run)
    assert evaluated.metrics["val_loss"] == unitrain.load_run(run).metrics["val_loss"]
    assert unitrain.export(run, "other", quiet=True).version == 1
    capfd.readouterr()
    again = unitrain.resume(run, {"trainer.max_epochs": 2}, quiet=True)
    assert again.metrics
    assert yaml.safe_load((run / "settings.yaml").read_text())["publish"]["golden"]["samples"] == 2


def test_runs_differ_in_values_not_in_names(settings: Path, tmp_path: Path) -> None:
    """A run of an earlier release is compared with one of this release."""
    run = unitrain.fit(settings, FORMER | {"trainer.max_epochs": 1, "publish.keep": 3}, quiet=True).run_dir
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_bytes((run / "run.json").read_bytes())
    text = (run / "settings.yaml").read_text()
    (other / "settings.yaml").write_text(text.replace("keep: 3", "keep: 4"))
    as_an_earlier_release_wrote(other / "settings.yaml")
    assert compare_runs(run, other).settings == {"publish.keep": (3, 4)}
