"""What a run leaves for TensorBoard, beside what its module logs."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

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
def events(settings: Path, project: Path) -> EventAccumulator:
    """Of a run whose model draws."""
    source = project / "models" / "small.py"
    source.write_text(source.read_text() + DRAWS)
    overrides = {
        "model.class_path": "models.small.Draws",
        "trainer.log_every_n_steps": 4,
        "summaries.histograms_every_n_validations": 2,
        "publish.every_n_validations": 4,
    }
    run = unitrain.fit(settings, overrides, quiet=True).run_dir
    return EventAccumulator(str(run)).Reload()


def test_a_run_tells_all_that_there_is(events: EventAccumulator) -> None:
    """Rates and norms, the average's distance, the best metric, publications, figures, texts and the session."""
    tags = events.Tags()
    assert {"lr", "gradient_norm", "ema_distance", "best/val_loss", "publish/version"} <= set(tags["scalars"])
    assert len(events.Scalars("gradient_norm")) == 8
    assert all(event.value > 0 for event in events.Scalars("ema_distance"))
    best = [event.value for event in events.Scalars("best/val_loss")]
    assert best == sorted(best, reverse=True)
    assert best[-1] == pytest.approx(min(event.value for event in events.Scalars("val_loss")))
    assert [event.step for event in events.Images("fit")] == [16, 32]
    assert events.Images("fit")[0].width == 540
    assert events.Images("picture")[0].width == 8
    assert {"settings/text_summary", "words/text_summary", "publish/text_summary"} <= set(tags["tensors"])
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    session = HParamsPluginData.FromString(content).session_start_info
    assert session.hparams["model.init_args.hidden"].number_value == 16
    assert session.hparams["ema.decay"].number_value == pytest.approx(0.998)
    content = events.SummaryMetadata("_hparams_/session_end_info").plugin_data.content
    assert HParamsPluginData.FromString(content).session_end_info.status == 1
