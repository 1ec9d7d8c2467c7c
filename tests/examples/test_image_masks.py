"""Folders of images and masks as patches: what is read, balanced, split and refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from unitrain.datamodules.image_files import OpenFiles, find_pairs, grey_levels, open_array
from unitrain.datamodules.image_masks import ImageMasks
from unitrain.datamodules.image_patches import Region, blocks, space_parts
from unitrain.errors import DataError, HookError


def write(path: Path, array: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, array)
    else:
        Image.fromarray(array).save(path)


def rare_class(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    """Zeros but for one small box of ones."""
    mask = np.zeros(shape, np.uint8)
    place = np.random.default_rng(seed).integers(0, np.array(shape) - 3)
    mask[tuple(slice(a, a + 3) for a in place)] = 1
    return mask


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """Five images in three formats, each with a mask whose pixels are its image's over 100."""
    for n, (kind, mask_kind) in enumerate([("png", "tif"), ("tif", "npy"), ("npy", "png")] * 2):
        mask = rare_class((80, 70 + n), seed=n)
        image = np.random.default_rng(n).integers(0, 100, mask.shape).astype(np.uint8) + 100 * mask
        write(tmp_path / "images" / f"cells_{n}.{kind}", image)
        write(tmp_path / "masks" / f"cells_{n}.{mask_kind}", mask)
    return str(tmp_path / "images"), str(tmp_path / "masks")


def first_batch(loader: Any) -> Any:
    return next(iter(loader))


def test_patches_of_a_rare_class_are_as_many_as_of_a_common_one(folders: tuple[str, str]) -> None:
    """Nine pixels of 5,600 are foreground; half of the patches have some, and image and mask fit together."""
    data = ImageMasks(*folders, patch_shape=16, batch_size=64, patches=128, validation_share=0.4)
    batch = first_batch(data.train_dataloader())
    assert tuple(batch["image"].shape) == (64, 1, 16, 16)
    assert batch["image"].dtype == batch["mask"].dtype == torch.uint8
    assert torch.equal((batch["image"][:, 0] >= 100).to(torch.uint8), batch["mask"])
    assert int((batch["mask"].flatten(1).sum(1) > 0).sum()) >= 32


def test_patches_are_the_same_in_a_resumed_epoch_and_with_workers(folders: tuple[str, str]) -> None:
    """Whatever is random is a function of seed, epoch and batch, whoever reads."""
    data = ImageMasks(*folders, patch_shape=16, batch_size=8, patches=32, gain=0.1)
    batches = [b["image"] for b in data.train_dataloader()]
    assert not torch.equal(batches[0], batches[1])
    resumed = data.train_dataloader()
    resumed.load_state_dict({"epoch": 0, "position": 2})
    assert torch.equal(first_batch(resumed)["image"], batches[2])
    data.num_workers = 1
    assert torch.equal(first_batch(data.train_dataloader())["image"], batches[0])
    later = data.train_dataloader()
    later.set_epoch(1)
    assert not torch.equal(first_batch(later)["image"], batches[0])


def test_validation_and_test_cover_their_part_alone_and_whole(tmp_path: Path) -> None:
    """Cut by space, every pixel's number is in the part that its place says, and none in two."""
    numbers = np.arange(60 * 40, dtype=np.float32).reshape(60, 40)
    write(tmp_path / "image.npy", numbers)
    write(tmp_path / "mask.npy", (numbers % 2).astype(np.int64))
    data = ImageMasks(
        str(tmp_path / "image.npy"), str(tmp_path / "mask.npy"),
        patch_shape=[12, 16], split="space", validation_share=0.2, test_share=0.25, gap=3,
    )  # fmt: skip
    seen = {
        "train": np.concatenate([b["image"].numpy().ravel() for b in data.train_dataloader()]),
        "validation": np.concatenate([b["image"].numpy().ravel() for b in data.val_dataloader()]),
        "test": np.concatenate([b["image"].numpy().ravel() for b in data.test_dataloader()]),
    }
    rows = {part: {int(v) // 40 for v in values} for part, values in seen.items()}
    assert rows["train"] <= set(range(30))
    assert rows["validation"] == set(range(33, 42))
    assert rows["test"] == set(range(45, 60))
    assert set(np.unique(seen["test"])) == set(range(45 * 40, 60 * 40))


def test_files_are_dealt_to_the_parts_by_seed(folders: tuple[str, str]) -> None:
    """Each file is in one part; another seed deals otherwise."""
    data = ImageMasks(*folders, patch_shape=8, validation_share=0.34, test_share=0.17)
    names = [[pair.image.name for pair in data.pairs_of(p)] for p in ("train", "validation", "test")]
    assert [len(part) for part in names] == [3, 2, 1]
    assert len({name for part in names for name in part}) == 6
    others = (ImageMasks(*folders, patch_shape=8, validation_share=0.34, seed=s) for s in range(1, 5))
    assert any(other.pairs_of("validation") != data.pairs_of("validation") for other in others)


def test_volumes_with_instances_and_deep_grey_values_become_classes_and_bytes(tmp_path: Path) -> None:
    """In three dimensions, numbered things are class 1, and a range of 16-bit values is mapped to 0 to 255."""
    mask = rare_class((12, 20, 24)).astype(np.uint16) * 700
    write(tmp_path / "images" / "a.tif", (1000 + mask).astype(np.uint16))
    write(tmp_path / "masks" / "a.tif", mask)
    data = ImageMasks(
        str(tmp_path / "images" / "a.tif"), str(tmp_path / "masks" / "a.tif"), dimensions=3, patch_shape=[8, 8, 6],
        batch_size=4, patches=4, instances=True, value_range=(1000, 1700), split="space", split_axis=0,
        validation_share=0.34,
    )  # fmt: skip
    batch = first_batch(data.train_dataloader())
    assert tuple(batch["image"].shape) == (4, 1, 8, 8, 6)
    assert torch.equal(batch["image"][:, 0], batch["mask"] * 255)
    assert tuple(first_batch(data.val_dataloader())["image"].shape[1:]) == (1, 4, 8, 6)


def test_colours_become_channels_with_their_own_statistics(tmp_path: Path) -> None:
    """A PNG of three colours has three channels, a mean and a deviation each."""
    generator = np.random.default_rng(0)
    for name in "ab":
        image = generator.normal([50, 100, 150], [5, 10, 20], (64, 64, 3)).clip(0, 255).astype(np.uint8)
        write(tmp_path / "images" / f"{name}.png", image)
        write(tmp_path / "masks" / f"{name}.png", rare_class((64, 64)))
    data = ImageMasks(str(tmp_path / "images"), str(tmp_path / "masks"), patch_shape=32, validation_share=0.5)
    assert data.n_channels == 3
    assert data.channel_means == pytest.approx([49.5, 99.5, 149.5], abs=1)
    assert data.channel_stds == pytest.approx([5, 10, 20], rel=0.1)
    assert tuple(first_batch(data.train_dataloader())["image"].shape[1:]) == (3, 32, 32)


def test_a_palette_is_colours_of_an_image_and_classes_of_a_mask(tmp_path: Path) -> None:
    """The indices of an image's palette are no grey values."""
    classes = Image.fromarray(rare_class((40, 40)), "P")
    classes.putpalette([10, 20, 30, 200, 100, 0])
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for name in "abc":
            classes.save(tmp_path / folder / f"{name}.png")
    data = ImageMasks(str(tmp_path / "images"), str(tmp_path / "masks"), patch_shape=16, validation_share=0.4)
    sample = data.train[1]
    assert sample["mask"].any()
    assert np.array_equal(sample["image"], np.array([[10, 20, 30], [200, 100, 0]]).T[:, sample["mask"]])


def test_npy_and_plain_tiff_are_mapped_and_decoded_files_kept_within_bounds(tmp_path: Path) -> None:
    """A mapped file costs no memory; of decoded ones the last are kept, as many as the bytes allow."""
    array = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
    write(tmp_path / "a.npy", array)
    write(tmp_path / "a.tif", array)
    tifffile.imwrite(tmp_path / "b.tif", array, compression="zlib")
    for name, mapped in (("a.npy", True), ("a.tif", True), ("b.tif", False)):
        opened = open_array(tmp_path / name)
        assert isinstance(opened, np.memmap) is mapped
        assert np.array_equal(opened, array)
    tifffile.imwrite(tmp_path / "c.tif", array, compression="zlib")
    files = OpenFiles(kept_bytes=array.nbytes)
    first = files.get(tmp_path / "b.tif")
    assert files.get(tmp_path / "b.tif") is first
    _ = files.get(tmp_path / "c.tif")
    assert files.get(tmp_path / "b.tif") is not first


def wrong_shape(images: Path, masks: Path) -> None:
    write(masks / "a.npy", np.zeros((8, 9), np.uint8))


def missing(images: Path, masks: Path) -> None:
    (masks / "a.npy").unlink()


def twice(images: Path, masks: Path) -> None:
    write(images / "a.png", np.zeros((32, 32), np.uint8))


def unreadable(images: Path, masks: Path) -> None:
    (images / "a.npy").unlink()
    (images / "a.png").write_bytes(b"no picture")


def out_of_range(images: Path, masks: Path) -> None:
    mask = rare_class((32, 32))
    mask[5, 7] = 9
    write(masks / "a.npy", mask)


def no_integers(images: Path, masks: Path) -> None:
    write(masks / "a.npy", np.zeros((32, 32), np.float32))


def no_foreground(images: Path, masks: Path) -> None:
    for name in "ab":
        write(masks / f"{name}.npy", np.zeros((32, 32), np.uint8))


def too_small(images: Path, masks: Path) -> None:
    for name in "ab":
        write(images / f"{name}.npy", np.zeros((10, 32), np.uint8))
        write(masks / f"{name}.npy", np.zeros((10, 32), np.uint8))


def colours_differ(images: Path, masks: Path) -> None:
    write(images / "b.npy", np.zeros((32, 32, 3), np.uint8))


def depths_differ(images: Path, masks: Path) -> None:
    write(images / "b.npy", np.full((32, 32), 700, np.uint16))


def constant(images: Path, masks: Path) -> None:
    for name in "ab":
        write(images / f"{name}.npy", np.full((32, 32), 7, np.uint8))


def nothing(images: Path, masks: Path) -> None:
    for path in images.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (missing, r"images/a\.npy: its mask is missing, expected one of a\.png, a\.tif.* in .*masks"),
        (wrong_shape, r"masks/a\.npy: expected the shape \[32, 32\] of a\.npy, got \[8, 9\]"),
        (twice, r"a\.png: expected one image of a stem|a\.npy too|got a\.npy"),
        (unreadable, r"images/a\.png: can't be read as an image"),
        (out_of_range, r"masks/a\.npy: expected classes from 0 to 1, got 9 at \[5, 7\]"),
        (no_integers, r"masks/a\.npy: expected integers, got float32"),
        (no_foreground, "no training pixel is of class 1"),
        (
            too_small,
            r"images/[ab]\.npy: its training part is of \[10, 32\] pixels, which is smaller than a patch",
        ),
        (colours_differ, r"images/b\.npy: expected 1 channels as in a\.npy, got 3"),
        (depths_differ, r"images/b\.npy: expected uint8 as in a\.npy, got uint16; a value_range"),
        (constant, "channel 0 of the training images has one value only"),
        (nothing, r"images: expected files of \.png"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, spoil: Any, words: str) -> None:
    """One sentence: which file, what was expected, what was got."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    for n, name in enumerate("ab"):
        write(images / f"{name}.npy", np.random.default_rng(n).integers(0, 255, (32, 32)).astype(np.uint8))
        write(masks / f"{name}.npy", rare_class((32, 32), seed=n))
    spoil(images, masks)
    with pytest.raises(DataError, match=words):
        ImageMasks(str(images), str(masks), patch_shape=16, validation_share=0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dimensions": 4}, "dimensions"),
        ({"patch_shape": [16]}, "patch_shape of 2 lengths"),
        ({"split_axis": 2}, "split_axis from 0 to 1"),
        ({"class_names": ["one"]}, "2 to 256 class_names"),
        ({"validation_share": 0.5, "test_share": 0.5}, "leave something for training"),
        ({"value_range": (5, 5)}, "value_range"),
    ],
)
def test_a_wrong_argument_is_refused(folders: tuple[str, str], options: Any, words: str) -> None:
    """Before any file is read."""
    with pytest.raises(HookError, match=words):
        ImageMasks(*folders, **options)


def test_a_part_that_would_be_empty_is_refused(folders: tuple[str, str]) -> None:
    """A share of too few files gives none."""
    with pytest.raises(DataError, match="nothing would be left for test"):
        ImageMasks(*folders, test_share=0.05, patch_shape=8)
    data = ImageMasks(*folders, patch_shape=8)
    with pytest.raises(HookError, match="no test part; give test_share"):
        data.test_dataloader()


def test_grey_levels_are_rounded_and_clipped() -> None:
    """The range's ends are 0 and 255, what is beyond is clipped."""
    assert grey_levels(np.array([0, 100, 151, 200, 300]), (100, 200)).tolist() == [0, 0, 130, 255, 255]


def test_blocks_and_parts_cover_without_overlap() -> None:
    """Each pixel of a region is in one block; the parts of an axis leave the gaps out."""
    seen = np.zeros((10, 7), int)
    for block in blocks(Region(0, (2, 1), (10, 7)), (3, 4)):
        seen[tuple(slice(a, b) for a, b in zip(block.start, block.stop, strict=True))] += 1
    assert seen[2:, 1:].min() == seen.max() == 1
    assert seen.sum() == 8 * 6
    assert space_parts(100, 0.2, 0.1, gap=5) == {"train": (0, 65), "validation": (70, 85), "test": (90, 100)}
    assert space_parts(100, 0.2, 0.0, gap=5) == {
        "train": (0, 75),
        "validation": (80, 100),
        "test": (100, 100),
    }


def test_an_image_and_its_mask_may_be_two_files(folders: tuple[str, str]) -> None:
    """Whatever their stems are."""
    images, masks = map(Path, folders)
    (pair,) = find_pairs(images / "cells_0.png", masks / "cells_1.npy")
    assert (pair.image.name, pair.mask.name) == ("cells_0.png", "cells_1.npy")
    with pytest.raises(DataError, match="expected a folder"):
        find_pairs(images / "nothing", masks)
