"""The best weights are what is served: published if they beat what is there, else held back."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import unitrain
from unitrain.cli import main
from unitrain.errors import PublishRefused, RepositoryError, SettingsError
from unitrain.publish import Publisher, Request, Worker
from unitrain.repository import Repository
from unitrain.repository.manifest import Manifest, read_manifest
from unitrain.repository.onnx_session import run_onnx
from unitrain.repository.promote import promote
from unitrain.repository.repository import roll_back
from unitrain.training.training_run import RunResult

STEPS = 8
"""Of an epoch: 256 training samples in batches of 32."""
OFF = {
    "embeddings": None,
    "summaries": None,
    "ema": None,
    "links": {},
    "model.class_path": "models.scripted.Scripted",
    "data.class_path": "datamodules.points.DictPoints",
    "publish.every_n_validations": 1,
}


def train(settings: Path, values: list[float], *, quiet: bool = True, **overrides: Any) -> RunResult:
    """A run whose metric has these values."""
    given = {"model.init_args": {"values": values}, "trainer.max_epochs": len(values)}
    return unitrain.fit(settings, OFF | given | overrides, quiet=quiet)


@pytest.fixture
def repository(project: Path) -> Repository:
    """The project's."""
    return Repository(project / "triton_repo")


def manifests(repository: Repository, model: str = "points") -> list[Manifest]:
    """Of all versions, ascending."""
    found = [read_manifest(repository.version_dir(model, n)) for n in repository.versions(model)]
    return [manifest for manifest in found if manifest]


def weight(version_dir: Path) -> float:
    """The weight that a version serves: the optimizer steps that it has seen."""
    x = np.array([[0.0], [1.0]], np.float32)
    (y,) = run_onnx(version_dir / "model.onnx", {"x": x}).values()
    return float(y[1, 0] - y[0, 0])


def record(result: RunResult) -> dict[str, Any]:
    """What run.json has."""
    found: dict[str, Any] = json.loads((result.run_dir / "run.json").read_text())
    return found


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which the weights were copied."""
    steps: list[int] = []
    capture = Publisher.capture

    def counting(self: Publisher, module: LightningModule, **options: Any) -> Request:
        steps.append(options["step"])
        return capture(self, module, **options)

    monkeypatch.setattr(Publisher, "capture", counting)
    return steps


@pytest.mark.parametrize("cadence", [1, 2, 100])
def test_the_best_is_served_where_early_stopping_ends_the_training(
    settings: Path, repository: Repository, captured: list[int], cadence: int
) -> None:
    """The best of validation 2 of 5 is the newest version, with the weights of that validation.

    Weights are copied at the validations that improve the metric, and at no other.
    """
    result = train(
        settings, [0.5, 0.2, 0.4, 0.3, 0.35, 0.1],
        **{"early_stopping.patience": 3, "publish.every_n_validations": cadence},
    )  # fmt: skip
    assert result.status == "stopped"
    newest = manifests(repository)[-1]
    assert (newest.step, newest.epoch) == (2 * STEPS, 1) == (result.best["step"], result.best["epoch"])
    assert newest.metric is not None
    assert newest.metric.value == pytest.approx(0.2)
    assert weight(repository.version_dir("points", newest.version)) == 2 * STEPS
    assert result.published == repository.versions("points")
    steps = [entry["step"] for entry in record(result)["published"]]
    assert steps == sorted(set(steps))  # no step twice
    assert captured == [STEPS, 2 * STEPS]


@pytest.mark.parametrize(
    ("error", "step"),
    [(RepositoryError("no space left"), 2 * STEPS), (PublishRefused("parity", "off"), 3 * STEPS)],
)
def test_the_best_that_was_refused_is_tried_again_or_followed_by_the_next_best(
    settings: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch, error: Exception, step: int
) -> None:
    """What the disk refused is published at the end; what a gate refused leaves room for a later one."""
    publish, publishing = Publisher.publish, list[int]()

    def refusing(self: Publisher, request: Request) -> Manifest:
        publishing.append(request.step)
        if publishing == [2 * STEPS]:
            raise error
        return publish(self, request)

    monkeypatch.setattr(Publisher, "publish", refusing)
    wait = Worker.wait
    monkeypatch.setattr(
        Worker, "submit", lambda self, request, submit=Worker.submit: (submit(self, request), wait(self))
    )
    train(settings, [0.5, 0.2, 0.4], **{"publish.every_n_validations": 2})
    assert [manifest.step for manifest in manifests(repository)] == [step]


def test_every_publishes_the_weights_as_they_are(settings: Path, repository: Repository) -> None:
    """The way of earlier releases."""
    train(settings, [0.5, 0.2, 0.4], **{"publish.policy": "every"})
    newest = manifests(repository)[-1]
    assert newest.step == 3 * STEPS
    assert weight(repository.version_dir("points", newest.version)) == 3 * STEPS


def test_a_worse_run_is_held_back_and_can_be_promoted(
    settings: Path, project: Path, repository: Repository, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """One sentence with both metrics, the flag and the command; that command publishes the version, proven."""
    monkeypatch.chdir(project)
    first = train(settings, [0.3])
    capfd.readouterr()
    worse = train(settings, [0.9, 0.6, 0.7], quiet=False)
    assert (worse.exit_code, worse.published) == (0, [])
    assert worse.held_back == [STEPS, 2 * STEPS]
    assert repository.versions("points") == [1]
    *_, before_last, last = capfd.readouterr().err.strip().splitlines()
    assert "finished: all 3 epochs done" in before_last
    command = f"python -m unitrain models promote points --run experiments/points/{worse.run_dir.name}"
    reason = (
        f"val_loss 0.6 is worse than the 0.3 of version 1 (run points/{first.run_dir.name}); `{command}` publishes it "
        "all the same, and `--publish.policy every` does so in a training"
    )
    assert last == f"nothing was published, since all 2 candidates were held back: {reason}"
    entries = record(worse)["held_back"]
    assert [entry["step"] for entry in entries] == [STEPS, 2 * STEPS]
    assert (entries[-1]["reason"], entries[-1]["version"], entries[-1]["value"]) == (
        reason,
        1,
        pytest.approx(0.3),
    )
    events = EventAccumulator(str(worse.run_dir))
    events.Reload()
    assert [e.value for e in events.Scalars("publish/held_back/val_loss")] == pytest.approx([0.9, 0.6])
    texts = [t.tensor_proto.string_val[0].decode() for t in events.Tensors("publish/outcome/text_summary")]
    assert all("▼ is held back: val_loss" in text for text in texts)
    assert len(texts) == 2

    assert main(command.split()[3:]) == 0
    assert "published points version 2: step 16" in capfd.readouterr().out
    newest = manifests(repository)[-1]
    assert (newest.version, newest.step, newest.promoted) == (2, 2 * STEPS, True)
    assert newest.comparison is not None
    assert newest.comparison["outcome"] == "worse"
    assert weight(repository.version_dir("points", 2)) == 2 * STEPS
    assert main(["models", "verify", "points", "2"]) == 0
    assert main(command.split()[3:]) == 1  # the same step is never published twice
    assert "is version 2 already" in capfd.readouterr().err


def test_a_better_run_is_published_and_an_equal_one_is_held_back(
    settings: Path, repository: Repository
) -> None:
    """Equal metrics count as better only within one run."""
    train(settings, [0.3])
    assert train(settings, [0.3]).held_back == [STEPS]
    assert train(settings, [0.2]).published == [2]
    assert manifests(repository)[-1].previous == {"version": 1, "value": pytest.approx(0.3)}
    assert train(settings, [0.25], **{"publish.policy": "every"}).published == [3]


def test_a_higher_metric_is_better_where_the_mode_says_so(settings: Path, repository: Repository) -> None:
    """An accuracy, say."""
    high = {"monitor": {"metric": "val_loss", "mode": "max"}}
    assert train(settings, [0.1, 0.7, 0.5], **high).published
    assert manifests(repository)[-1].step == 2 * STEPS
    assert train(settings, [0.6], **high).held_back == [STEPS]
    told = train(settings, [0.9])  # the mode is min here
    assert manifests(repository)[-1].comparison["reason"] == "there the highest val_loss is the best"
    assert told.published


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data.init_args": {"n": 321}}, "it was validated on other data"),
        ({"monitor": {"metric": "m"}, "model.init_args": {"values": [0.9], "metric": "m"}}, "its metric is val_loss"),
        ({"model.class_path": "models.scripted.OtherDefinition"}, "its val_loss is computed by models.scripted.Scripted"),
        ({"data.class_path": "datamodules.points.NoisyValidation"}, "the validation data differ"),
    ],
)  # fmt: skip
def test_what_can_not_be_compared_is_published_and_said_so(
    settings: Path, repository: Repository, change: dict[str, Any], reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Other data, another metric, another definition of it, a loader that is not repeatable."""
    base = {"data.class_path": "datamodules.points.Points", "data.init_args": {}}
    train(settings, [0.3], **base)
    capfd.readouterr()
    assert train(settings, [0.9], quiet=False, **base | change).published == [2]
    assert f"not comparable with version 1, because {reason}" in capfd.readouterr().err


def test_compared_with_the_version_that_a_rollback_serves(settings: Path, repository: Repository) -> None:
    """A version that was rolled back keeps nobody back."""
    train(settings, [0.5])
    train(settings, [0.1])
    roll_back(repository, "points", 1)
    assert train(settings, [0.3]).published == [4]


def test_versions_that_are_damaged_or_foreign_keep_nothing_back(
    settings: Path, repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    """No manifest, a broken one, and one without a number for its metric."""
    train(settings, [0.1])
    path = repository.version_dir("points", 1) / "manifest.json"
    content = json.loads(path.read_text())
    for text in (None, "{", json.dumps(content | {"metric": content["metric"] | {"value": None}})):
        path.unlink() if text is None else path.write_text(text)
        assert len(train(settings, [0.9]).published) == 1
        newest = repository.versions("points")[-1]
        path = repository.version_dir("points", newest) / "manifest.json"


def test_damaged_held_back_version_is_not_promoted(
    settings: Path, repository: Repository, project: Path
) -> None:
    """Hash and golden samples are checked on what is published; a run that holds nothing back is told."""
    first = train(settings, [0.1])
    held = train(settings, [0.2]).run_dir
    with pytest.raises(RepositoryError, match="holds nothing back"):
        promote(repository, "points", first.run_dir)
    with pytest.raises(RepositoryError, match="is a version of points, not of other"):
        promote(repository, "other", held)
    assert {path.name for path in (held / "held_back").iterdir()} == {
        "model.onnx",
        "manifest.json",
        "golden.npz",
    }
    path = held / "held_back" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(RepositoryError, match="is damaged, so it is not published: sha256"):
        promote(repository, "points", held)
    assert repository.versions("points") == [1]


def test_without_validation_data_each_cadence_is_published(
    settings: Path, repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    """There is nothing to compare; it is said once."""
    result = train(
        settings, [0.1, 0.1, 0.1], quiet=False,
        **{"data.class_path": "datamodules.points.NoValidation", "early_stopping": None},
    )  # fmt: skip
    assert result.published
    assert manifests(repository)[-1].step == 3 * STEPS
    told = capfd.readouterr().err
    assert told.count("there are no validation data, so the current weights are published") == 1


def test_without_the_metric_each_cadence_is_published(
    settings: Path, repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where neither early stopping nor checkpoints need it."""
    off = {"early_stopping": None, "trainer.enable_checkpointing": False}
    train(settings, [0.1, 0.1], quiet=False, **off | {"model.class_path": "models.scripted.Unmeasured"})
    assert manifests(repository)[-1].step == 2 * STEPS
    told = capfd.readouterr().err
    assert told.count("no validation has measured val_loss, so the current weights are published") == 1


def test_metric_that_is_no_number_is_never_published(
    settings: Path, repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    """NaN is no best; it is said once."""
    values = [float("nan"), float("inf")]
    result = train(settings, values, quiet=False, early_stopping=None)
    assert result.published == []
    told = capfd.readouterr().err
    assert told.count("no validation has given a finite val_loss, so nothing is published") == 1


def test_of_several_validation_loaders_the_monitored_one_counts(
    settings: Path, repository: Repository
) -> None:
    """All loaders are part of the fingerprint."""
    two = {
        "model.class_path": "models.scripted.TwoSets",
        "data.class_path": "datamodules.points.TwoValidations",
        "monitor": {"metric": "val_loss/dataloader_idx_1"},
    }
    train(settings, [0.5, 0.2, 0.3], **two)
    newest = manifests(repository)[-1]
    assert newest.step == 2 * STEPS
    assert newest.data_fingerprint is not None
    assert train(settings, [0.4], **two).held_back == [STEPS]


@pytest.mark.parametrize("averaged", [False, True])
def test_resumed_run_publishes_the_best_that_was_lost(
    settings: Path, repository: Repository, averaged: bool
) -> None:
    """Interrupted after the best validation and before it was due: it comes from best.ckpt."""
    values = [0.5, 0.2, 0.4, 0.3]
    overrides = {
        "model.class_path": "models.scripted.Dying",
        "model.init_args": {"values": values, "dies_in_epoch": 2},
        "publish.every_n_validations": 100,
    } | ({"ema": {"decay": 0.5}} if averaged else {})
    lost = train(settings, values, **overrides)
    assert (lost.status, lost.published) == ("interrupted", [])
    calm = ["--model.init_args.dies_in_epoch", "-1"]
    assert main(["fit", "--resume", str(lost.run_dir), *calm]) == 0
    (only,) = manifests(repository)
    assert (only.step, only.epoch, only.data_fingerprint) == (
        2 * STEPS, 1, record(lost)["data_fingerprint"],
    )  # fmt: skip
    assert only.metric is not None
    assert only.metric.value == pytest.approx(0.2)
    saved = torch.load(lost.run_dir / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    served = weight(repository.version_dir("points", 1))
    assert served == pytest.approx(float(saved["layer.weight"]), abs=1e-4)
    assert (served == 2 * STEPS) is not averaged


def test_resumed_run_publishes_no_step_twice(settings: Path, repository: Repository) -> None:
    """Neither what was published nor what was held back before the interruption comes again."""
    dying = {"model.class_path": "models.scripted.Dying"}
    values = [0.5, 0.2, 0.4, 0.3]
    run = train(settings, values, **dying | {"model.init_args": {"values": values, "dies_in_epoch": 2}})
    count = len(run.published)
    calm = ["--model.init_args.dies_in_epoch", "-1"]
    assert main(["fit", "--resume", str(run.run_dir), *calm]) == 0
    assert len(manifests(repository)) == count
    worse = [0.9, 0.6, 0.7, 0.8]
    held = train(settings, worse, **dying | {"model.init_args": {"values": worse, "dies_in_epoch": 2}})
    assert 2 * STEPS in held.held_back
    assert main(["fit", "--resume", str(held.run_dir), *calm]) == 0
    assert [entry["step"] for entry in record(held)["held_back"]] == held.held_back
    assert len(manifests(repository)) == count


def test_export_by_hand_publishes_and_warns(
    settings: Path, project: Path, repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is an order; what it makes worse is said, with the way back."""
    train(settings, [0.1])
    held = train(settings, [0.4])
    capfd.readouterr()
    assert main(["export", "--run", str(held.run_dir)]) == 0
    told = capfd.readouterr()
    assert "version 2 is worse than version 1 that it replaces: val_loss 0.4 against 0.1" in told.err
    assert "models rollback points 1" in told.err
    assert "val_loss 0.4 ▼ (version 1: 0.1)" in told.out
    assert repository.versions("points") == [1, 2]


def test_versions_are_marked_better_worse_and_best(
    settings: Path, repository: Repository, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the list, in the details, and as JSON."""
    every = {"publish.policy": "every"}
    for value in (0.5, 0.2, 0.4):
        train(settings, [value], **every)
    at = ["--model-repository", str(repository.root)]
    capfd.readouterr()
    assert main(["models", *at]) == 0
    rows = capfd.readouterr().out.splitlines()[1:]
    assert [row.split("val_loss ")[1].split("  ")[0] for row in rows] == ["0.5", "0.2 ▲★", "0.4 ▼"]
    assert main(["models", "--json", *at]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [(v["outcome"], v["best"]) for v in found] == [(None, False), ("better", True), ("worse", False)]
    assert main(["models", "show", "points", "2", *at]) == 0
    assert "▲★ the best, better than the version before" in capfd.readouterr().out


def test_earlier_setting_is_an_alias_with_a_warning(
    settings: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`require_improvement: true` is the default now; with `every` it contradicts itself."""
    train(settings, [0.3])
    result = train(settings, [0.4], **{"publish.require_improvement": True})
    assert result.held_back
    assert "publish.require_improvement is deprecated" in capfd.readouterr().err
    with pytest.raises(
        SettingsError, match=r"publish\.require_improvement: true means publish\.policy: best"
    ):
        train(settings, [0.4], **{"publish.require_improvement": True, "publish.policy": "every"})


def test_run_of_an_earlier_release_is_resumed(settings: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its saved settings have `require_improvement: false`, which is no wish of anybody."""
    run = train(settings, [0.3, 0.2]).run_dir
    path = run / "settings.yaml"
    text = path.read_text()
    assert "  policy: best\n" in text
    path.write_text(
        text.replace("  policy: best\n", "").replace(
            "require_improvement: null", "require_improvement: false"
        )
    )
    capfd.readouterr()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs", "3"]) == 0
    assert "require_improvement" not in capfd.readouterr().err
