"""What a run leaves for TensorBoard, beside what its module logs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard_server import TensorBoard
from time_limits import wait_until

import unitrain

DRAWS = """

from unitrain.figures import truth_against_prediction

class Draws(Curve):
    def summaries(self, inputs, outputs, batch):
        assert not self.training
        return {
            "fit": truth_against_prediction(outputs["y"], batch["target"]),
            "picture": outputs["y"].reshape(1, 8, 8).sigmoid(),
            "words": "so it is",
        }
"""


@pytest.fixture
def draws(project: Path) -> Path:
    """The settings of a model that draws."""
    return drawing(project)


def drawing(project: Path) -> Path:
    """The settings of a project whose model has been made to draw."""
    source = project / "models" / "small.py"
    source.write_text(source.read_text() + DRAWS)
    settings = project / "problem" / "settings.yaml"
    settings.write_text(settings.read_text().replace("models.small.Curve", "models.small.Draws"))
    return settings


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> EventAccumulator:
    """Of a run that publishes once."""
    project = tmp_path_factory.mktemp("drawn") / "project"
    shutil.copytree(Path(__file__).parent / "project", project)
    overrides = {
        "trainer.log_every_n_steps": 4,
        "summaries.histograms_every_n_validations": 2,
        "publish.every_n_validations": 4,
    }
    run = unitrain.fit(drawing(project), overrides, quiet=True).run_dir
    return EventAccumulator(str(run), size_guidance={"histograms": 0}).Reload()


def text(events: EventAccumulator, tag: str) -> str:
    """The last of a tag's texts."""
    return events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_a_run_tells_its_loss_terms_metrics_weights_and_graph(events: EventAccumulator) -> None:
    """Each term of training and validation by its name, a histogram a weight, and the graph once."""
    tags = events.Tags()
    terms = {f"{stage}_{name}" for stage in ("train", "val") for name in ("loss", "mse", "size")}
    assert terms | {"val_MSE"} <= set(tags["scalars"])
    assert {"weights/net.0.weight", "weights/net.0.bias"} <= set(tags["histograms"])
    assert [event.step for event in events.Histograms("weights/net.0.weight")] == [15, 31]
    assert events.Histograms("weights/net.0.weight")[0].histogram_value.num == 16
    assert tags["graph"]
    assert "Linear" in str(events.Graph())


def test_a_publication_is_marked_with_its_version_and_what_the_gates_measured(
    events: EventAccumulator,
) -> None:
    """A scalar for the curve, and a text with the metric and the parity; no version twice."""
    assert [(event.step, event.value) for event in events.Scalars("publish/version")] == [(31, 1.0)]
    assert any(tag.startswith("publish/parity_max_abs") for tag in events.Tags()["scalars"])
    told = text(events, "publish/outcome")
    assert "version 1" in told
    assert "val_loss" in told
    assert "parity" in told
    assert "    experiment: points" in text(events, "settings")


def test_histograms_norm_and_graph_are_by_choice(draws: Path) -> None:
    """Each has its switch; a null section has none of all."""
    quiet = {
        "publish": None,
        "embeddings": None,
        "trainer.max_epochs": 1,
        "trainer.log_every_n_steps": 2,
        "trainer.precision": "bf16-mixed",  # in which pictures come out
    }
    off = {"histograms_every_n_validations": 0, "gradient_norm": False, "graph": False}
    overrides = quiet | {f"summaries.{name}": value for name, value in off.items()}
    tags = EventAccumulator(str(unitrain.fit(draws, overrides, quiet=True).run_dir)).Reload().Tags()
    assert not tags["histograms"]
    assert not tags["graph"]
    assert "gradient_norm" not in tags["scalars"]
    assert "fit" in tags["images"]
    nothing = unitrain.fit(draws, quiet | {"summaries": None}, quiet=True).run_dir
    assert not EventAccumulator(str(nothing)).Reload().Tags()["images"]


def test_runs_compare_by_final_and_best_metrics_in_the_hparams_tab(draws: Path) -> None:
    """A row a run, with its settings, the last value of each scalar, and the best of the monitored one."""
    overrides = {"publish": None, "embeddings": None, "summaries.graph": False}
    results = [
        unitrain.fit(draws, overrides | {"model.init_args.hidden": hidden}, quiet=True) for hidden in (4, 8)
    ]
    names = {str(result.run_dir.relative_to(draws.parents[1] / "experiments")): result for result in results}
    server = TensorBoard(draws.parents[1] / "experiments")
    try:
        wanted = ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"]

        def metrics() -> list[dict[str, Any]]:
            return server.post("experiment", {"experimentName": ""})["metricInfos"]

        def has_all() -> bool:
            return {"val_loss", "best/val_loss", "val_MSE"} <= {info["name"]["tag"] for info in metrics()}

        wait_until(has_all, "TensorBoard did not list the metrics")
        columns = [{"metric": info["name"]} for info in metrics()]
        question = {"allowedStatuses": wanted, "colParams": columns, "startIndex": 0, "sliceSize": 10}
        groups = server.post("session_groups", question)["sessionGroups"]
    finally:
        server.stop()
    assert len(groups) == 2
    assert sorted(group["hparams"]["model.init_args.hidden"] for group in groups) == [4, 8]
    for group in groups:
        [session] = group["sessions"]
        values = {
            (each["name"]["tag"], each["name"].get("group", "")): each["value"]
            for each in group["metricValues"]
        }
        by_tag = {tag: value for (tag, _), value in values.items()}
        result = names[session["name"].removesuffix("/.").removesuffix("/")]
        assert session["status"] == "STATUS_SUCCESS"
        assert by_tag["val_loss"] == pytest.approx(result.metrics["val_loss"])
        assert result.best is not None
        assert by_tag["best/val_loss"] == pytest.approx(result.best["value"])


def test_a_run_tells_all_that_there_is(events: EventAccumulator) -> None:
    """Rates and norms, the average's distance, the best metric, publications, figures, texts and the session."""
    tags = events.Tags()
    assert {"lr", "gradient_norm", "ema_distance", "best/val_loss", "publish/version"} <= set(tags["scalars"])
    assert len(events.Scalars("gradient_norm")) == 8
    assert all(event.value > 0 for event in events.Scalars("ema_distance"))
    best = [event.value for event in events.Scalars("best/val_loss")]
    assert best == sorted(best, reverse=True)
    assert best[-1] == pytest.approx(min(event.value for event in events.Scalars("val_loss")))
    assert [event.step for event in events.Images("fit")] == [15, 31]
    assert events.Images("fit")[0].width == 540
    assert events.Images("picture")[0].width == 8
    assert {"settings/text_summary", "words/text_summary", "publish/outcome/text_summary"} <= set(
        tags["tensors"]
    )
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    session = HParamsPluginData.FromString(content).session_start_info
    assert session.hparams["model.init_args.hidden"].number_value == 16
    assert session.hparams["ema.decay"].number_value == pytest.approx(0.998)
    content = events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    assert HParamsPluginData.FromString(content).session_end_info.status == 1
