"""Nuclei: the data's split, tiles, the client, and the whole way in two and three dimensions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT
from PIL import Image
from terminal import Terminal

from examples.segmentation.client import TilesIO
from examples.segmentation.data import NucleiPatches
from examples.segmentation.nuclei import load_nuclei
from examples.segmentation.pictures import write_mask
from examples.segmentation.reference import otsu
from examples.segmentation.scores import foreground_iou
from examples.segmentation.tiling import tiles
from unitrain.client import ModelInfo
from unitrain.errors import DataError
from unitrain.signature import Signature, TensorSpec

README = ROOT / "examples" / "segmentation" / "README.md"


def served(dimensions: int) -> ModelInfo:
    free = (-1,) * dimensions
    signature = Signature(
        (TensorSpec("image", "UINT8", (1, *free)),), (TensorSpec("classes", "UINT8", free),), batched=True
    )
    return ModelInfo("segmentation", (4,), None, signature, 1024, "127.0.0.1:8001")


def answer(io: TilesIO, *, but: int | None = None) -> None:
    """Give the client what a model would that calls a nucleus what is brighter than 40; one tile may fail."""
    for index, sample in enumerate(io.inputs()):
        assert sample["image"].dtype == np.uint8
        if index != but:
            io.decode(index, {"classes": (sample["image"][0] > 40).astype(np.uint8)}, version=4)
    io.finalize()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_no_held_out_pixel_is_in_training_or_validation(dimensions: Any) -> None:
    """The three parts are apart by a gap, and the client scores the very part that the data module holds out."""
    data = NucleiPatches(dimensions=dimensions, patch_shape=32 if dimensions == 2 else 8)
    nuclei = load_nuclei(dimensions)
    used = np.zeros(nuclei.mask.shape, int)
    for number, part in enumerate(("train", "validation", "test"), start=1):
        (region,) = data.regions[part]
        box = tuple(slice(a, b) for a, b in zip(region.start, region.stop, strict=True))
        assert not used[box].any()
        used[box] = number
    assert (used[nuclei.held_out] == 3).all()
    assert (used == 3).sum() == used[nuclei.held_out].size
    assert (used == 0).any(), "there is a gap"


@pytest.mark.parametrize(
    ("shape", "size", "margin"),
    [((100, 37), 40, 8), ((512, 512), 128, 26), ((9, 70, 33), 32, 5), ((5, 5), 16, 4)],
)
def test_each_pixel_is_kept_of_one_tile_and_far_from_its_edges(
    shape: tuple[int, ...], size: int, margin: int
) -> None:
    """Unless the edge is the image's own; tiles begin at multiples of 4 and are no larger than asked."""
    kept = np.zeros(shape, int)
    for tile in tiles(shape, size, margin):
        kept[tile.target] += 1
        for source, part, target, length in zip(tile.source, tile.kept, tile.target, shape, strict=True):
            assert source.start % 4 == 0
            assert source.stop - source.start <= size
            assert (source.start + part.start, source.start + part.stop) == (target.start, target.stop)
            assert part.start >= margin or source.start == 0
            assert source.stop - target.stop >= margin or source.stop == length
    assert (kept == 1).all()
    with pytest.raises(ValueError, match="expected a size of"):
        tiles(shape, 2 * margin, margin)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_client_stitches_scores_and_writes(
    dimensions: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was asked in tiles is one image again, scored on the held-out part; mask and overlay are pictures."""
    mask = tmp_path / "new" / ("mask.png" if dimensions == 2 else "mask.npy")
    io = TilesIO(served(dimensions), tile=96, margin=8, mask=str(mask), overlay=str(tmp_path / "overlay.png"))
    answer(io)
    nuclei = load_nuclei(dimensions)
    expected = (nuclei.image[0] > 40).astype(np.uint8)
    assert io.classes is not None
    assert np.array_equal(io.classes, expected)
    part = nuclei.held_out
    assert io.iou == foreground_iou(expected[part] > 0, nuclei.mask[part])
    stored = np.array(Image.open(mask)) if dimensions == 2 else np.load(mask)
    assert np.array_equal(stored, expected)
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert min(overlay.size) > 100
    assert "version 4" in capsys.readouterr().out


def test_client_with_a_tile_missing_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stitched image with a hole would pass for an answer."""
    io = TilesIO(served(2), mask=str(tmp_path / "mask.png"))
    answer(io, but=3)
    assert f"1 of {io.total} tiles have no answer" in capsys.readouterr().out
    assert not (tmp_path / "mask.png").exists()


def test_client_takes_any_image_and_asks_for_the_range_of_deep_ones(tmp_path: Path) -> None:
    """A file of 8 bit goes as it is; one of 16 bit needs to be told what is black and white."""
    image = np.random.default_rng(0).integers(0, 256, (70, 50)).astype(np.uint8)
    np.save(tmp_path / "flat.npy", image)
    np.save(tmp_path / "deep.npy", image.astype(np.uint16) + 1000)
    io = TilesIO(served(2), image=str(tmp_path / "flat.npy"))
    answer(io)
    assert np.array_equal(io.classes > 0, image > 40)  # type: ignore[operator]
    assert np.isnan(io.iou)
    with pytest.raises(DataError, match="expected 8-bit grey values, got uint16"):
        TilesIO(served(2), image=str(tmp_path / "deep.npy"))
    deep = TilesIO(served(2), image=str(tmp_path / "deep.npy"), value_range=(1000, 1255))
    assert np.array_equal(next(deep.inputs())["image"][0], image)


def test_a_volume_s_mask_is_no_png(tmp_path: Path) -> None:
    """The suffix that goes is named."""
    with pytest.raises(DataError, match=r"mask\.png: expected a \.npy"):
        write_mask(tmp_path / "mask.png", np.zeros((3, 4, 5), np.uint8))


@pytest.mark.slow
def test_served_nuclei_are_better_than_otsu_s(terminal: Terminal) -> None:
    """README's commands and the same on the volume, trained for a short time: a higher IoU than by Otsu's threshold."""
    narrow = "--model.init_args.width 8"
    terminal.read(README, f"--trainer.max_epochs 4 {narrow}", f"--trainer.max_epochs 6 {narrow}")
    config = "--config examples/segmentation/settings_3d.yaml"
    terminal.type(f"python -m unitrain fit {config}")
    terminal.type(
        f"python -m unitrain predict segmentation_3d {config} --io.overlay experiments/overlay_3d.png"
    )
    for dimensions, command in ((2, "predict segmentation --config"), (3, "predict segmentation_3d")):
        nuclei = load_nuclei(dimensions)
        part = nuclei.held_out
        reference = foreground_iou(otsu(nuclei.image[0])[part], nuclei.mask[part])
        found = float(terminal.said(command).split("held-out part ")[1].split()[0])
        assert found > reference + 0.03, dimensions
    for overlay in ("segmentation/overlay.png", "overlay_3d.png"):
        assert (terminal.project / "experiments" / overlay).read_bytes().startswith(b"\x89PNG")
