"""Folders, images, archives and long signals as sources, without a server."""

import sys
import tracemalloc

import numpy as np
import pytest

from unitrain.client.io.samples import Windows
from unitrain.client.io.sources import check_source, open_samples
from unitrain.client.metadata import ModelInfo
from unitrain.errors import DataError, UsageError
from unitrain.signature import Signature, TensorSpec


def model(*dims, dtype="FP32", names=("x",)):
    """A model that takes rows of `dims`."""
    inputs = tuple(TensorSpec(name, dtype, dims) for name in names)
    return ModelInfo("m", (1,), None, Signature(inputs, inputs, batched=True), 64, "localhost:1")


def read(source, for_model, count=None, windows=None):
    """(samples, what was noted, how many were announced)."""
    notes = []
    samples = open_samples(str(source), for_model, count, notes.append, windows=windows)
    return list(samples.rows), notes, samples.total


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archive_is_read_row_by_row(tmp_path, save):
    """The rows of an archive of 12 MB are those that were saved, and take no 12 MB of memory."""
    rows = np.arange(3_000_000, dtype=np.float32).reshape(-1, 1000)
    save(tmp_path / "in.npz", x=rows, label=np.zeros(3))
    tracemalloc.start()
    try:
        samples = open_samples(str(tmp_path / "in.npz"), model(1000), None, lambda _: None)
        assert samples.total == len(rows)
        for place, sample in enumerate(samples.rows):
            if place % 1000 == 7:
                assert np.array_equal(sample["x"], rows[place])
        assert place == len(rows) - 1
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


def test_archive_that_is_damaged_is_an_error_after_its_good_rows(tmp_path):
    """A wrong checksum at its end is told when it is met, in one sentence."""
    rows = np.ones((1000, 3), np.float32)
    np.savez(tmp_path / "in.npz", x=rows)
    data = bytearray((tmp_path / "in.npz").read_bytes())
    data[6000] ^= 0xFF
    (tmp_path / "in.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"in.npz: is no readable .npz file: Bad CRC"):
        read(tmp_path / "in.npz", model(3))


def test_archive_in_fortran_order_is_read_too(tmp_path):
    """Rows that do not lie one after the other are those of the array all the same."""
    rows = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    np.savez(tmp_path / "in.npz", x=rows)
    samples, _, _ = read(tmp_path / "in.npz", model(3))
    assert np.array_equal([s["x"] for s in samples], rows)


def image(path, array):
    """Write it as an image."""
    from PIL import Image

    Image.fromarray(array).save(path)
    return array


@pytest.mark.parametrize(
    ("dims", "arrange"),
    [((4, 6, 3), lambda a: a), ((3, 4, 6), lambda a: a.transpose(2, 0, 1))],
)
def test_folder_of_images_is_a_sample_each_in_order_of_names(tmp_path, dims, arrange):
    """Colours go last or first as the model has them, values as in the file; other files are told of."""
    generator = np.random.default_rng(0)
    colours = [generator.integers(0, 255, (4, 6, 3), dtype=np.uint8) for _ in range(3)]
    for name, array in zip(("b.png", "a.bmp", "c.tiff"), colours, strict=True):
        image(tmp_path / name, array)
    (tmp_path / "readme.txt").write_text("no image")
    samples, notes, total = read(tmp_path, model(*dims, dtype="UINT8"))
    assert total == 3
    assert [s.name for s in samples] == ["a.bmp", "b.png", "c.tiff"]
    for sample, place in zip(samples, (1, 0, 2), strict=True):
        assert np.array_equal(sample["x"], arrange(colours[place]))
    assert notes == [f"{tmp_path}: ignored 1 entry of other kinds"]
    matched, _, _ = read(f"{tmp_path}/[ab].*", model(*dims, dtype="UINT8"))
    assert [s.name for s in matched] == ["a.bmp", "b.png"]


def test_images_become_grey_where_the_model_has_no_colours(tmp_path):
    """[height, width] and [1, height, width] take grey values; 16 bits stay 16 bits."""
    image(tmp_path / "a.png", np.full((4, 6, 3), 200, np.uint8))
    image(tmp_path / "b.png", np.full((4, 6), 40_000, np.uint16))
    for dims in ((4, 6), (1, 4, 6), (4, 6, 1)):
        samples, _, _ = read(tmp_path, model(*dims))
        assert [s["x"].shape for s in samples] == [dims, dims]
        assert [s["x"].max() for s in samples] == [200, 40_000]


def test_file_of_a_folder_that_does_not_fit_is_an_error_in_its_place(tmp_path):
    """Each names its file, what was expected and what was got; the others are samples."""
    image(tmp_path / "a.png", np.zeros((5, 6), np.uint8))
    (tmp_path / "b.png").write_bytes(b"no image")
    np.save(tmp_path / "c.npy", np.ones((4, 6), np.float32))
    np.savez(tmp_path / "d.npz", y=np.ones((4, 6)))
    (tmp_path / "e.npy").write_bytes(b"no array")
    samples, _, _ = read(tmp_path, model(4, 6))
    assert [isinstance(s, DataError) for s in samples] == [True, True, False, True, True]
    assert "a.png: expected one sample of x: FP32[4, 6], got the shape [5, 6]" in str(samples[0])
    assert "b.png: is no readable image" in str(samples[1])
    assert "d.npz: there is no array x" in str(samples[3])
    assert "e.npy: is no readable .npy file" in str(samples[4])


def test_folder_without_samples_is_refused(tmp_path):
    """So is one of images for a model of two inputs, and a pattern that nothing matches."""
    with pytest.raises(DataError, match=r"expected files of .npy, .npz, .png.*, got 0 others"):
        read(tmp_path, model(3))
    with pytest.raises(DataError, match="got 0 others"):
        read(f"{tmp_path}/*.png", model(3))
    np.save(tmp_path / "a.npy", np.ones(3))
    with pytest.raises(UsageError, match=r"the model's inputs are a, b, so each sample must be a .npz file"):
        read(tmp_path, model(3, names=("a", "b")))


def test_images_without_pillow_say_what_to_install(tmp_path, monkeypatch):
    """Pillow is needed by images only."""
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"images need Pillow.*pip install pillow"):
        read(tmp_path, model(4, 6))


@pytest.mark.parametrize("kind", ["npy", "npy, channels first", "npz", "csv", "jsonl"])
@pytest.mark.parametrize("dims", [(5, 2), (2, 5), (-1, 2)])
def test_window_slides_over_a_signal(tmp_path, kind, dims):
    """Every hop steps a window, with its axes as the model has them, from each kind of file."""
    signal = np.arange(48, dtype=np.float32).reshape(24, 2)
    path = tmp_path / f"signal.{kind[:3] if kind != 'jsonl' else kind}"
    if kind == "npz":
        np.savez(path, x=signal)
    elif kind == "csv":
        path.write_text("x[0],x[1]\n" + "".join(f"{a},{b}\n" for a, b in signal))
    elif kind == "jsonl":
        path.write_text("".join(f'{{"x": [{a}, {b}]}}\n' for a, b in signal))
    else:
        np.save(path, signal.T if "first" in kind else signal)
    samples, _, total = read(path, model(*dims), windows=Windows(5, 3))
    expected = [signal[at : at + 5] for at in range(0, 20, 3)]
    assert total in (None, len(expected))
    assert len(samples) == len(expected)
    for sample, window in zip(samples, expected, strict=True):
        assert np.array_equal(sample["x"], window.T if dims == (2, 5) else window)


def test_window_over_one_channel_and_with_gaps(tmp_path):
    """A signal of one axis goes to an input of one axis; a hop longer than the window leaves steps out."""
    np.save(tmp_path / "signal.npy", np.arange(10, dtype=np.float32))
    samples, _, total = read(tmp_path / "signal.npy", model(2), windows=Windows(2, 4))
    assert [s["x"].tolist() for s in samples] == [[0, 1], [4, 5], [8, 9]]
    assert total == 3


def test_step_that_can_not_be_read_fails_the_windows_it_lies_in(tmp_path):
    """And no other."""
    path = tmp_path / "signal.csv"
    path.write_text("x\n" + "".join(f"{i if i != 4 else 'word'}\n" for i in range(9)))
    samples, _, _ = read(path, model(3), windows=Windows(3, 2))
    assert [isinstance(s, DataError) for s in samples] == [False, True, True, False]
    assert "signal.csv, line 6, column x" in str(samples[1])


@pytest.mark.parametrize(
    ("dims", "said"),
    [
        ((7, 2), "expected an input of 5 steps"),
        ((5, 2, 1), "at most one axis of channels"),
        ((5, -1), "leaves its channels open"),
    ],
)
def test_input_that_is_no_window_is_refused(tmp_path, dims, said):
    """The sentence names the flag and the input."""
    np.save(tmp_path / "signal.npy", np.zeros((20, 2), np.float32))
    with pytest.raises(UsageError, match=said):
        read(tmp_path / "signal.npy", model(*dims), windows=Windows(5, 1))


def test_signal_that_does_not_fit_is_refused(tmp_path):
    """Too short, or of other channels."""
    np.save(tmp_path / "signal.npy", np.zeros((4, 2), np.float32))
    with pytest.raises(DataError, match="a signal of 4 steps has no window of 5"):
        read(tmp_path / "signal.npy", model(5, 2), windows=Windows(5, 1))
    with pytest.raises(
        DataError, match=r"expected a signal of the shape \[steps, 3\] or \[3, steps\], got \[4, 2\]"
    ):
        read(tmp_path / "signal.npy", model(5, 3), windows=Windows(5, 1))


def test_file_starts_again_for_an_endless_count(tmp_path):
    """-1 goes round and round; a count takes the first ones, and announces them."""
    np.save(tmp_path / "in.npy", np.arange(3, dtype=np.float32).reshape(3, 1))
    samples = open_samples(str(tmp_path / "in.npy"), model(1), -1, lambda _: None)
    assert [float(next(samples.rows)["x"][0]) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert samples.total is None
    assert read(tmp_path / "in.npy", model(1), count=2)[2] == 2


def test_what_names_no_source_is_refused(tmp_path):
    """The sentence has what would."""
    with pytest.raises(UsageError, match="a folder, a pattern such as 'images/"):
        check_source("data.txt")
    check_source(str(tmp_path))
    check_source("*.png")
