"""A running TensorBoard shows each snapshot as it was written, and none breaks the page."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard_server import TensorBoard
from time_limits import wait_until

from unitrain.projector import prune_snapshots, write_snapshot

RANDOM = np.random.default_rng(5)
ROWS = 60


def points(width: int = 8, rows: int = ROWS) -> np.ndarray:
    return RANDOM.normal(size=(rows, width)).astype("f4")


def test_a_running_tensorboard_shows_every_new_snapshot(tensorboard: TensorBoard, run_dir: Path) -> None:
    """Its configs are cached: a second snapshot of a run it knows must appear, too."""
    code, signal = points(), points(4).reshape(ROWS, 2, 2)
    for step in (10, 20):
        snapshot = write_snapshot(run_dir, "validation", {"code": code, "x": signal}, step=step)
        assert snapshot == run_dir / "embeddings" / f"step_{step}"
        run = tensorboard.wait_for(snapshot)
        assert set(tensorboard.info(run)) == {f"validation/code@{step}", f"validation/x@{step}"}
        np.testing.assert_allclose(tensorboard.tensor(run, f"validation/code@{step}"), code, rtol=2e-5)
        shown = tensorboard.tensor(run, f"validation/x@{step}")
        np.testing.assert_allclose(shown, signal.reshape(ROWS, 4), rtol=2e-5)


TEXT = np.frombuffer(b"abcd" * 4 * ROWS, "<f4").reshape(ROWS, 4)
LATE = np.zeros((ROWS * 40, 64), "f4")
LATE[-1] = np.frombuffer(b"\xff" * 3 + b"\x3f", "<f4")
NUMBERED = np.frombuffer(b"1.5\n" + b"\xff\xfe\xfd\x3f" * (4 * ROWS - 1), "<f4").reshape(ROWS, 4)
CARRIAGE = np.frombuffer(b"1.5\r" + b"\xff\xfe\xfd\x3f" * (4 * ROWS - 1), "<f4").reshape(ROWS, 4)
NEWLINE = np.frombuffer(b"\nabc" + b"\xff\xfe\xfd\x3f" * (4 * ROWS - 1), "<f4").reshape(ROWS, 4)


LOOKS_LIKE_TEXT = {
    "zeros": np.zeros((ROWS, 4)),
    "negative_zeros": np.full((ROWS, 4), -0.0),
    "ones": np.ones((ROWS, 4)),
    "one_row": np.zeros((1, 3)),
    "letters": TEXT,
    "text_for_600_kB": LATE,
    "a_number_in_the_first_line": NUMBERED,
    "a_number_and_a_carriage_return": CARRIAGE,
    "an_empty_first_line": NEWLINE,
}


@pytest.mark.parametrize("tensor", LOOKS_LIKE_TEXT.values(), ids=LOOKS_LIKE_TEXT.keys())
def test_bytes_that_could_be_text_do_not_break_the_page(
    tensorboard: TensorBoard, run_dir: Path, tensor: np.ndarray
) -> None:
    """A dead code's zeros are valid UTF-8: unguarded, `/runs` answers 500 for every run."""
    run = tensorboard.wait_for(write_snapshot(run_dir, "", {"code": tensor}, step=1))
    shown = tensorboard.tensor(run, "code@1")
    np.testing.assert_allclose(shown, tensor, rtol=2e-5)
    np.testing.assert_array_equal(shown[1:], tensor[1:])


def test_labels_of_several_columns_have_a_header(tensorboard: TensorBoard, run_dir: Path) -> None:
    """Each by its name, a value a row."""
    labels = {"class": [f"c{i % 3}" for i in range(ROWS)], "index": range(ROWS)}
    run = tensorboard.wait_for(write_snapshot(run_dir, "", {"code": points()}, labels, step=1))
    shown = tensorboard.labels(run, "code@1")
    assert shown == {"class": labels["class"], "index": list(map(str, range(ROWS)))}


def test_labels_of_one_column_have_no_header(tensorboard: TensorBoard, run_dir: Path) -> None:
    """The page takes a single column's first line for the first label."""
    run = tensorboard.wait_for(
        write_snapshot(run_dir, "", {"code": points()}, {"class": range(ROWS)}, step=1)
    )
    assert tensorboard.labels(run, "code@1") == {"label": list(map(str, range(ROWS)))}


@pytest.mark.parametrize("columns", [1, 2])
def test_labels_with_breaks_blanks_and_unicode_stay_in_their_rows(
    tensorboard: TensorBoard, run_dir: Path, columns: int
) -> None:
    """Tabs and newlines would shift all that follows, and so would an empty line."""
    odd = ["a\tb", "c\nd", "e\r\nf", "", "  ", "größe 日本 🙂", "\u2028x", "\ud800", None, "y" * 500]
    expected = ["a b", "c d", "e f", "(empty)", "(empty)", "größe 日本 🙂", "x", "?", "None", "y" * 199 + "…"]
    labels = dict.fromkeys(("first\tname", "second")[:columns], odd)
    snapshot = write_snapshot(run_dir, "", {"code": points(rows=len(odd))}, labels, step=1)
    shown = tensorboard.labels(tensorboard.wait_for(snapshot), "code@1")
    assert list(shown) == (["label"] if columns == 1 else ["first name", "second"])
    assert all(column == expected for column in shown.values())


def test_rows_that_are_not_finite_are_left_out_everywhere(
    tensorboard: TensorBoard, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From all tensors, labels and thumbnails alike, counted and warned of; a dead tensor takes none with it."""
    code, other = points(), points()
    code[3, 1], other[5, 0], other[7, 7] = np.nan, np.inf, -np.inf
    tensors = {"code": code, "other": other, "dead": np.full((ROWS, 4), np.nan)}
    sprites = np.zeros((ROWS, 2, 2), np.uint8)
    snapshot = write_snapshot(run_dir, "", tensors, {"row": range(ROWS)}, step=1, sprites=sprites)
    run = tensorboard.wait_for(snapshot)
    kept = [row for row in range(ROWS) if row not in (3, 5, 7)]
    assert set(tensorboard.info(run)) == {"code@1", "other@1"}
    assert tensorboard.labels(run, "code@1") == {"label": list(map(str, kept))}
    np.testing.assert_allclose(tensorboard.tensor(run, "other@1"), other[kept], rtol=2e-5)
    assert "3 of 60 rows omitted" in caplog.text
    assert "dead left out" in caplog.text


def test_values_beyond_float32_are_dropped_like_infinities(tensorboard: TensorBoard, run_dir: Path) -> None:
    """They would be infinities in the file, without a warning of numpy's on the way."""
    code = points().astype("f8")
    code[0, 0] = 1e300
    run = tensorboard.wait_for(write_snapshot(run_dir, "", {"code": code}, step=1))
    assert tensorboard.info(run)["code@1"]["tensorShape"] == [ROWS - 1, 8]


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_tensors_are_padded_to_three_axes(tensorboard: TensorBoard, run_dir: Path, width: int) -> None:
    """The page draws three components, and nothing at all where there are fewer values."""
    narrow = points(width)
    run = tensorboard.wait_for(write_snapshot(run_dir, "", {"score": narrow}, step=1))
    shown = tensorboard.tensor(run, "score@1")
    np.testing.assert_allclose(shown[:, :width], narrow, rtol=2e-5)
    assert shown.shape == (ROWS, 3)
    assert not shown[:, width:].any()


def test_numbers_of_every_kind_are_shown(tensorboard: TensorBoard, run_dir: Path) -> None:
    """Booleans, integers and half precision, as float32; a row of one value, too."""
    tensors = {
        "bool": np.tile([True, False, True], (ROWS, 1)),
        "uint8": np.arange(ROWS * 3, dtype=np.uint8).reshape(ROWS, 3),
        "int64": np.arange(ROWS),
        "float16": points().astype("f2"),
    }
    run = tensorboard.wait_for(write_snapshot(run_dir, "", tensors, step=1))
    for name, tensor in tensors.items():
        shown = tensorboard.tensor(run, f"{name}@1")[:, : tensor[0].size or 1]
        np.testing.assert_allclose(shown, tensor.reshape(ROWS, -1), rtol=2e-5, err_msg=name)


def test_names_are_fit_for_the_pages_requests(tensorboard: TensorBoard, run_dir: Path) -> None:
    """It does not escape them: `&`, `#` and `+` never reach it, and no two tensors share a name."""
    tensors = {"a&b": points(), "a#b": points(), "größe": points()}
    run = tensorboard.wait_for(write_snapshot(run_dir, "served+", tensors, step=1))
    assert set(tensorboard.info(run)) == {"served_/a_b@1", "served_/a_b_2@1", "served_/größe@1"}


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_thumbnails_lie_in_the_sheet_row_by_row(
    tensorboard: TensorBoard, run_dir: Path, channels: int | None
) -> None:
    """The page cuts point i's out at column i modulo the columns, and at row i over the *rows* (its shader does)."""
    rows, height, width = 5, 6, 4
    images = np.zeros((rows, height, width, *([channels] if channels else [])), np.uint8)
    for row in range(rows):
        images[row] = 30 * row + 10
    snapshot = write_snapshot(run_dir, "", {"code": points(rows=rows)}, step=1, sprites=images)
    run = tensorboard.wait_for(snapshot)
    assert tensorboard.info(run)["code@1"]["sprite"]["singleImageDim"] == [width, height]
    sheet = Image.open(io.BytesIO(tensorboard.get("sprite_image", run=run, name="code@1")))
    columns, lines = sheet.width // width, sheet.height // height
    for row in range(rows):
        pixel = sheet.getpixel((row % columns * width + 1, row // lines * height + 1))
        assert (pixel if isinstance(pixel, int) else pixel[0]) == 30 * row + 10


def test_a_sheet_never_exceeds_what_the_page_shows(tensorboard: TensorBoard, run_dir: Path) -> None:
    """Larger than 8192 pixels it kills the tab: thumbnails are made smaller instead."""
    rows = 900
    images = np.zeros((rows, 300, 200), np.uint8)
    images[:, 150:] = 200
    snapshot = write_snapshot(run_dir, "", {"code": points(rows=rows)}, step=1, sprites=images)
    run = tensorboard.wait_for(snapshot)
    sheet = Image.open(io.BytesIO(tensorboard.get("sprite_image", run=run, name="code@1")))
    width, height = tensorboard.info(run)["code@1"]["sprite"]["singleImageDim"]
    assert max(sheet.size) <= 8192
    assert sheet.size == (30 * width, 30 * height)
    assert height > width
    assert [sheet.getpixel((0, y)) for y in (0, height - 1)] == [0, 200]


def test_float_thumbnails_are_between_black_and_white(tensorboard: TensorBoard, run_dir: Path) -> None:
    """0 is black, 1 is white, and what lies beyond or is NaN does not wrap around."""
    images = np.array([0.0, 1.0, 2.0, -1.0, np.nan, 0.5], "f4")[:, None, None] * np.ones((2, 2), "f4")
    run = tensorboard.wait_for(write_snapshot(run_dir, "", {"code": points(rows=6)}, step=1, sprites=images))
    sheet = Image.open(io.BytesIO(tensorboard.get("sprite_image", run=run, name="code@1")))
    assert [sheet.getpixel((2 * (i % 3), 2 * (i // 3))) for i in range(6)] == [0, 255, 255, 0, 0, 128]


def test_a_step_that_is_written_again_replaces_the_first(tensorboard: TensorBoard, run_dir: Path) -> None:
    """A resumed run comes by the same step: one snapshot of it stays, whole."""
    for rows in (5, ROWS):
        snapshot = write_snapshot(run_dir, "", {"code": points(rows=rows)}, step=1)
    run = tensorboard.wait_for(snapshot)
    assert tensorboard.info(run)["code@1"]["tensorShape"] == [ROWS, 8]
    assert [path.name for path in snapshot.parent.iterdir()] == ["step_1"]
    assert len(list(snapshot.glob("events*"))) == 1


def test_pruned_snapshots_leave_the_page_working(tensorboard: TensorBoard, run_dir: Path) -> None:
    """The newest stay and are shown, by the running server, as what is written next is."""
    for step in (5, 10, 100):
        tensorboard.wait_for(write_snapshot(run_dir, "", {"code": points()}, step=step))
    assert prune_snapshots(run_dir, 1) == [5, 10]
    assert [path.name for path in (run_dir / "embeddings").iterdir()] == ["step_100"]
    run = tensorboard.wait_for(write_snapshot(run_dir, "", {"code": points()}, step=200))
    assert tensorboard.tensor(run, "code@200").shape == (ROWS, 8)
    assert tensorboard.tensor(run.replace("200", "100"), "code@100").shape == (ROWS, 8)


def test_twenty_runs_of_ten_snapshots_are_answered_for(tensorboard: TensorBoard) -> None:
    """All 200 are listed, and what the page asks of one a run is answered, dead codes among them."""
    snapshots = []
    for run in range(20):
        code = np.zeros((9, 4), "f4") if run % 2 else points(4, rows=9)
        snapshots += [
            write_snapshot(
                tensorboard.log_dir / f"many {run}", "", {"code": code}, {"row": range(9)}, step=step,
                sprites=np.full((9, 4, 4), run, np.uint8),
            )
            for step in range(10)
        ]  # fmt: skip
    shown = [str(snapshot.relative_to(tensorboard.log_dir)) for snapshot in snapshots]
    wait_until(
        lambda: set(shown) <= set(tensorboard.runs()), "TensorBoard did not list all runs", every_s=0.5
    )
    for run in range(20):
        step = run % 10
        where, name = shown[10 * run + step], f"code@{step}"
        assert set(tensorboard.info(where)) == {name}
        assert tensorboard.tensor(where, name).shape == (9, 4)
        assert tensorboard.labels(where, name)["label"] == list(map(str, range(9)))
        sheet = Image.open(io.BytesIO(tensorboard.get("sprite_image", run=where, name=name)))
        assert sheet.getpixel((0, 0)) == run


def test_a_single_sample_is_shown_with_label_and_thumbnail(tensorboard: TensorBoard, run_dir: Path) -> None:
    """One row, one line without a header, one picture."""
    snapshot = write_snapshot(
        run_dir, "", {"code": points(rows=1)}, {"class": ["ä"]}, step=1, sprites=np.ones((1, 3, 3), np.uint8)
    )
    run = tensorboard.wait_for(snapshot)
    assert tensorboard.tensor(run, "code@1").shape == (1, 8)
    assert tensorboard.labels(run, "code@1") == {"label": ["ä"]}
    assert Image.open(io.BytesIO(tensorboard.get("sprite_image", run=run, name="code@1"))).size == (3, 3)


def test_served_answers_are_shown_beside_those_of_the_validation(
    tensorboard: TensorBoard, run_dir: Path
) -> None:
    """`predict --output projector:` on a run's folder adds a run to what a running TensorBoard has of it."""
    validation = tensorboard.wait_for(write_snapshot(run_dir, "validation", {"code": points()}, step=3))
    served = tensorboard.wait_for(write_snapshot(run_dir / "served", "signals", {"code": points()}, step=2))
    assert set(tensorboard.info(validation)) == {"validation/code@3"}
    assert set(tensorboard.info(served)) == {"signals/code@2"}
    assert served == validation.replace("embeddings/step_3", "served/embeddings/step_2")


def test_the_largest_snapshot_is_served_whole(tensorboard: TensorBoard, run_dir: Path) -> None:
    """All of the 100,000 rows that the page asks for."""
    many = points(4, rows=100_000)
    run = tensorboard.wait_for(write_snapshot(run_dir, "", {"code": many}, {"row": range(100_000)}, step=1))
    np.testing.assert_allclose(tensorboard.tensor(run, "code@1"), many, rtol=2e-5)
    assert tensorboard.labels(run, "code@1")["label"][-1] == "99999"
