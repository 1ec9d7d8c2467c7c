"""What a snapshot of a validation holds, and that taking it changes nothing."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

import unitrain
from unitrain import UnitrainModule
from unitrain.projector import StableSample, draw_thumbnails, thumbnail_index
from unitrain.settings import Embeddings
from unitrain.training.callbacks.embedding_points import PointCollector, Points, merged_points, reduced_points
from unitrain.training.sample_batches import undisturbed

QUICK = {"publish": None, "summaries": None, "trainer.max_epochs": 2, "embeddings.every_n_validations": 1}


def snapshot(run_dir: Path, step: int) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """A snapshot's tensors and its label columns."""
    directory = run_dir / "embeddings" / f"step_{step}"
    config = text_format.Parse((directory / "projector_config.pbtxt").read_text(), ProjectorConfig())
    tensors = {
        info.tensor_name.removeprefix("validation/").partition("@")[0]: np.fromfile(
            directory / info.tensor_path, "<f4"
        ).reshape(tuple(info.tensor_shape))
        for info in config.embeddings
    }
    header, *lines = [line.split("\t") for line in (directory / "metadata.tsv").read_text().splitlines()]
    return tensors, {name: [line[i] for line in lines] for i, name in enumerate(header)}


def collected(batches: list[dict[str, torch.Tensor]], **settings: object) -> Points:
    """What a collector gathers of an autoencoder's batches."""

    class Doubles(UnitrainModule):
        def forward(self, x):
            return {"double": 2 * x}

    collector = PointCollector(Embeddings(**settings), said.append)
    said.clear()
    for _ in range(2):  # the second pass takes what the first one settled
        collector.begin()
        for batch in batches:
            collector.add(Doubles(), batch)
        gathered = collector.take()
    assert gathered is not None
    return gathered.points()


said: list[str] = []


def test_inputs_outputs_and_labels_of_the_validation_are_shown(settings: Path) -> None:
    """By their names, a row a sample, in the validation's order, without a second pass."""
    run = unitrain.fit(settings, QUICK, quiet=True).run_dir
    tensors, labels = snapshot(run, 16)
    assert set(tensors) == {"x", "y", "hidden"}
    assert labels["sample"] == [str(i) for i in range(64)]
    expected = ["left" if x < 0 else "right" for x in tensors["x"][:, 0]]
    assert labels["side"] == expected


def test_the_same_samples_are_in_every_snapshot_and_of_each_class_as_many(settings: Path) -> None:
    """So that one can watch them move; more than max_points are there."""
    run = unitrain.fit(settings, QUICK | {"embeddings.max_points": 20}, quiet=True).run_dir
    first, second = (snapshot(run, step) for step in (8, 16))
    np.testing.assert_array_equal(first[0]["x"], second[0]["x"])
    assert first[1] == second[1]
    assert not np.array_equal(first[0]["y"], second[0]["y"])
    assert Counter(first[1]["side"]) == {"left": 10, "right": 10}
    again = unitrain.fit(settings, QUICK | {"embeddings.max_points": 20}, quiet=True).run_dir
    assert snapshot(again, 16)[1] == second[1]


def test_training_is_the_same_to_the_bit_with_snapshots_of_every_validation(settings: Path) -> None:
    """Random numbers, modes and the average stay as they are without."""
    without = {"publish": None, "summaries": None, "trainer.max_epochs": 2, "embeddings": None}
    runs = [unitrain.fit(settings, overrides, quiet=True) for overrides in (QUICK, without)]
    weights = [torch.load(run.last_checkpoint, weights_only=True)["state_dict"] for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_plain_module_is_embedded_by_its_forward(settings: Path) -> None:
    """Its validation step returns nothing of what we look for."""
    settings.write_text(
        "model: {class_path: models.small.Plain}\n"
        "data: {class_path: datamodules.points.TuplePoints}\n"
        "trainer: {max_epochs: 1, accelerator: cpu}\n"
    )
    run = unitrain.fit(settings, {"publish": None, "summaries": None}, quiet=True).run_dir
    tensors, labels = snapshot(run, 8)
    assert set(tensors) == {"x", "output"}
    assert len(labels["target"]) == len(tensors["x"]) == 64


def test_reductions_are_those_that_the_settings_name() -> None:
    """Flattened, the mean over space, the centre, the first token."""
    x = torch.arange(2 * 3 * 5 * 5, dtype=torch.float32).reshape(2, 3, 5, 5)
    assert reduced_points(x, "flatten").shape == (2, 75)
    torch.testing.assert_close(reduced_points(x, "mean"), x.mean((2, 3)))
    torch.testing.assert_close(reduced_points(x, "centre"), x[:, :, 2, 2])
    tokens = x.reshape(2, 15, 5)
    torch.testing.assert_close(reduced_points(tokens, "first"), tokens[:, 0])
    points = collected([{"x": x}], reduce={"double": "mean"})
    np.testing.assert_allclose(points.tensors["double"], 2 * x.mean((2, 3)))


def test_a_wrong_reduction_is_refused_before_training(settings: Path) -> None:
    """With the ones that there are."""
    with pytest.raises(unitrain.errors.SettingsError, match="embeddings"):
        unitrain.fit(settings, {"embeddings.reduce": '{"y": "sideways"}'}, quiet=True)


def test_memory_is_bounded_by_points_and_by_bytes() -> None:
    """200,000 samples are gone through with room for the chosen ones alone, and a limit in bytes is kept."""
    rows = 200_000
    batches = [
        {"x": torch.arange(first, first + 1000.0)[:, None].repeat(1, 4), "label": torch.arange(1000) % 3}
        for first in range(0, rows, 1000)
    ]
    points = collected(batches, max_points=300)
    assert Counter(points.labels["label"]) == {0: 100, 1: 100, 2: 100}
    np.testing.assert_array_equal(points.tensors["x"][:, 0], points.indices)
    np.testing.assert_array_equal(points.tensors["double"], 2 * points.tensors["x"])
    assert points.labels["sample"] == points.indices.tolist()
    assert points.indices.max() > rows * 0.9
    few = collected(batches[:3], max_bytes=4 * 8 * 90)
    assert len(few.indices) == 80
    assert few.tensors["x"].nbytes + few.tensors["double"].nbytes <= 4 * 8 * 90


def test_a_tensor_that_is_too_wide_is_left_out_and_told() -> None:
    """Once, with its width and the setting; a narrower one is shown."""
    points = collected([{"x": torch.ones(4, 3), "label": torch.arange(4)}], max_width=3)
    assert set(points.tensors) == {"x", "double"}
    assert said == []
    wide = [{"x": torch.ones(4, 5), "label": torch.arange(4)}]

    class Halves(UnitrainModule):
        def forward(self, x):
            return {"half": x[:, :2]}

    collector = PointCollector(Embeddings(max_width=3), said.append)
    for _ in range(2):
        collector.begin()
        for batch in wide:
            collector.add(Halves(), batch)
        gathered = collector.take()
    assert gathered is not None
    assert set(gathered.points().tensors) == {"half"}
    assert len(said) == 1
    assert "5 values a point are more than embeddings.max_width (3)" in said[0]


def test_the_sample_does_not_depend_on_how_the_stream_is_cut() -> None:
    """One batch, many, or odd ones: the same places are chosen, small groups whole, large ones alike."""
    groups = np.array([0] * 5 + [1] * 4000 + [2] * 1000)
    chosen = []
    for size in (1, 7, 640, 10_000):
        sample = StableSample(205, seed=3)
        held = np.full(sample.capacity, -1)
        for first in range(0, len(groups), size):
            part = groups[first : first + size]
            places, slots = sample.take(len(part), part)
            held[slots] = first + places
        slots = sample.end()
        np.testing.assert_array_equal(held[slots], sample.indices)
        chosen.append(held[slots].tolist())
    assert all(each == chosen[0] for each in chosen)
    assert Counter(groups[chosen[0]].tolist()) == {0: 5, 1: 100, 2: 100}
    other = StableSample(205, seed=4)
    other.take(len(groups), groups)
    other.end()
    assert other.indices is not None
    assert other.indices.tolist() != chosen[0]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 64, 48), (32, 24, 3)),
        ((1, 8, 8), (8, 8)),
        ((6, 100), (32, 32)),
        ((500,), (32, 32)),
        ((64, 40), (32, 32)),
    ],
)
def test_thumbnails_are_drawn_of_images_and_of_signals(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Made smaller, or drawn as curves; no two different samples look alike."""
    samples = np.random.default_rng(0).normal(size=(5, *shape)).cumsum(-1).astype("f4")
    index = thumbnail_index(shape, 32)
    assert index is not None
    pictures = draw_thumbnails(samples[(slice(None), *index)], 32)
    assert pictures.shape == (5, *expected)
    assert pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == 5
    assert np.ptp(pictures) > 100


def test_a_rising_signal_is_drawn_as_a_rising_curve() -> None:
    """From the lower left to the upper right, hanging together, dark on white."""
    rising = np.tile(np.arange(100, dtype="f4"), (3, 1, 1))
    index = thumbnail_index((1, 100), 32)
    assert index is not None
    [picture, *_] = draw_thumbnails(rising[(slice(None), *index)], 32)
    heights = [np.flatnonzero(picture[:, column] < 128).mean() for column in range(32)]
    assert all(a >= b for a, b in itertools.pairwise(heights))
    assert heights[0] > 28
    assert heights[-1] < 3


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 4), (0, 9), (2, 3, 4, 5)])
def test_what_can_not_be_drawn_has_no_thumbnail(shape: tuple[int, ...]) -> None:
    """A number, a few numbers, a volume."""
    assert thumbnail_index(shape, 32) is None


def test_old_snapshots_go(settings: Path) -> None:
    """Only the newest stay, and run.json says the training finished."""
    overrides = QUICK | {"trainer.max_epochs": 4, "embeddings.keep": 2}
    run = unitrain.fit(settings, overrides, quiet=True).run_dir
    assert sorted(p.name for p in (run / "embeddings").iterdir()) == ["step_24", "step_32"]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


def test_shares_of_several_processes_are_put_back_into_the_validations_order() -> None:
    """Process r of n has every n-th sample from r on; what was added to make the shares equal is left out."""
    shares = [
        Points(
            np.array(own),
            {"x": np.array(own, "f4")[:, None] * 3 + rank},
            {"side": [f"{rank}:{i}" for i in own]},
            np.full((len(own), 9), rank, "f4"),
        )
        for rank, own in enumerate(([0, 1, 2], [1, 2], [0, 1, 2]))
    ]
    points = merged_points(shares, samples=8)
    assert points is not None
    assert points.indices.tolist() == points.tensors["x"][:, 0].tolist() == [0, 2, 3, 4, 5, 6, 7]
    assert points.labels["side"] == ["0:0", "2:0", "0:1", "1:1", "2:1", "0:2", "1:2"]
    assert points.labels["sample"] == points.indices.tolist()
    assert points.pictured is not None
    assert points.pictured[:, 0].tolist() == [0, 2, 0, 1, 2, 0, 1]
    assert merged_points([None, None], samples=8) is None


def test_memory_is_used_again_once_a_snapshot_is_written() -> None:
    """Two sets of buffers take turns; what is not yet written is left alone."""

    class Doubles(UnitrainModule):
        def forward(self, x):
            return {"double": 2 * x}

    collector = PointCollector(Embeddings(), said.append)

    def taken(value: float):
        collector.begin()
        collector.add(Doubles(), {"x": torch.full((8, 3), value)})
        gathered = collector.take()
        assert gathered is not None
        return gathered

    taken(0).release()
    first, second = taken(1), taken(2)
    assert (first.points().tensors["double"] == 2).all()
    first.release()
    third = taken(3)
    assert third.buffers["x"] is first.buffers["x"]
    assert third.buffers["x"] is not second.buffers["x"]
    assert (second.points().tensors["x"] == 2).all()


@pytest.mark.parametrize("reduce", [{}, {"x": "mean"}])
def test_thumbnails_show_the_input_however_it_is_reduced(reduce: dict[str, str]) -> None:
    """Drawn of the points themselves where they are whole; of the input where they are not."""
    x = torch.arange(4 * 2 * 20, dtype=torch.float32).reshape(4, 2, 20)
    points = collected([{"x": x}], reduce=reduce)
    assert points.pictured is not None
    np.testing.assert_array_equal(points.pictured, x)


def test_hooks_may_draw_random_numbers_and_the_training_does_not_notice() -> None:
    """torch's, numpy's and Python's generators go on as if nothing had been drawn."""

    def draws() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), random.random()]  # noqa: NPY002 - the global one is meant

    def sown() -> None:
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002 - the global one is meant
        random.seed(3)

    sown()
    expected = draws() + draws()
    sown()
    got = draws()
    with undisturbed(torch.device("cpu")):
        draws()
    assert got + draws() == expected


def test_one_validation_sample_is_a_snapshot_of_one_point() -> None:
    """And a validation without any is none, without a word."""
    points = collected([{"x": torch.ones(1, 3)}])
    assert points.tensors["double"].tolist() == [[2, 2, 2]]
    assert PointCollector(Embeddings(), said.append).take() is None
    assert said == []


def test_a_training_without_validation_data_shows_its_training_samples(settings: Path) -> None:
    """An epoch counts as a validation then."""
    overrides = QUICK | {"data.class_path": "datamodules.points.NoValidation", "early_stopping": None}
    run = unitrain.fit(settings, overrides, quiet=True).run_dir
    tensors, _ = snapshot(run, 16)
    assert len(tensors["x"]) == 256
