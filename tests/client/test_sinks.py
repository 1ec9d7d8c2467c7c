"""Outputs that grow, that can be read at any time, and that go on where they were interrupted."""

import json
import os

import numpy as np
import pytest

from unitrain.client.io.sinks import open_sink
from unitrain.client.metadata import ModelInfo
from unitrain.errors import DataError, UsageError
from unitrain.signature import Signature, TensorSpec

OUTPUTS = (TensorSpec("y", "FP32", (2,)), TensorSpec("n", "INT64", ()))


def model(outputs=OUTPUTS):
    """A model with these outputs."""
    return ModelInfo(
        "m", (1,), None, Signature((TensorSpec("x", "FP32", (2,)),), outputs, batched=True), 8, ""
    )


def row(i):
    return {"y": np.array([i, i + 0.5], np.float32), "n": np.array(i)}


def write(sink, first, last, fail=()):
    """Samples from `first` up to `last`; those in `fail` have an error."""
    for i in range(first, last):
        if i in fail:
            sink.write_error(i, DataError(f"sample {i} is wrong"))
        else:
            sink.write(i, row(i), 7)


def content(path):
    """(n of each row, its version) of an output of any kind."""
    if path.is_dir():
        found = [np.load(p) for p in sorted(path.glob("*.npz"))]
        return [int(a["n"]) for a in found], [int(a["version"]) for a in found]
    if path.suffix == ".npz":
        arrays = np.load(path)
        return arrays["n"].tolist(), arrays["version"].tolist()
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [line.get("n", 0) for line in lines], [line["version"] for line in lines]
    lines = [line.split(",") for line in path.read_text().splitlines()[1:]]
    return [int(line[2] or 0) for line in lines], [int(line[3]) for line in lines]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.npz", "out/"])
def test_resumed_output_is_as_if_it_had_not_been_interrupted(tmp_path, name):
    """Closed after 4 of 9 samples and opened again, it says where to go on and ends with 9, each once."""
    path = tmp_path / name
    target = f"{path}/" if name.endswith("/") else str(path)
    sink = open_sink(target, model(), None)
    write(sink, 0, 4, fail=(1,))
    sink.close()
    sink = open_sink(target, model(), None, resume=True)
    assert sink.done == 4
    write(sink, 4, 9)
    sink.close()
    numbers, versions = content(path)
    if path.is_dir():
        assert numbers == [0, 2, 3, 4, 5, 6, 7, 8]
        assert (path / "00000001.error.txt").read_text() == "sample 1 is wrong\n"
    else:
        assert numbers == [0, 0, 2, 3, 4, 5, 6, 7, 8]
        assert versions == [7, 0, 7, 7, 7, 7, 7, 7, 7]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_half_a_line_is_taken_off_when_resumed(tmp_path, name):
    """Wherever a text output was cut, what is whole stays and what comes after it makes it whole again."""
    sink = open_sink(str(tmp_path / name), model(), None)
    write(sink, 0, 5)
    sink.close()
    whole = (tmp_path / name).read_bytes()
    for cut in range(len(whole)):
        (tmp_path / name).write_bytes(whole[:cut])
        sink = open_sink(str(tmp_path / name), model(), None, resume=True)
        write(sink, sink.done, 5)
        sink.close()
        assert (tmp_path / name).read_bytes() == whole


def test_killed_process_leaves_arrays_to_go_on_from(tmp_path):
    """After an end without a word, `.npy` reads to its last flush, and `.npz` goes on from its parts."""
    wide = TensorSpec("y", "FP32", (64,))
    count = 20_000

    def fill(sink, last):
        for i in range(sink.done, last):
            sink.write(i, {"y": np.full(64, i, np.float32), "n": np.array(i)}, 7)

    npy, npz = tmp_path / "out.npy", tmp_path / "out.npz"
    killed = os.fork()
    if killed == 0:
        fill(open_sink(str(npy), model((wide,)), None), count)
        fill(open_sink(str(npz), model((wide, OUTPUTS[1])), None), count)
        os._exit(0)  # as kill -9 would: nothing is closed
    os.waitpid(killed, 0)
    whole = np.load(npy)
    assert 16_000 <= len(whole) < count
    assert np.array_equal(whole[:, 0], np.arange(len(whole)))
    assert not npz.exists()
    for path, outputs in ((npy, (wide,)), (npz, (wide, OUTPUTS[1]))):
        sink = open_sink(str(path), model(outputs), None, resume=True)
        assert sink.done < count
        fill(sink, count)
        sink.close()
    assert np.array_equal(np.load(npy)[:, 0], np.arange(count))
    assert np.array_equal(np.load(npz)["n"], np.arange(count))
    assert np.array_equal(np.load(npz)["version"], np.full(count, 7))
    assert not (tmp_path / "out.npz.parts").exists()


def test_open_shapes_are_those_of_the_first_answer(tmp_path):
    """Rows that failed before it are NaN; a row of another shape is refused."""
    outputs = (TensorSpec("y", "FP32", (-1,)),)
    sink = open_sink(str(tmp_path / "out.npy"), model(outputs), None)
    sink.write_error(0, DataError("no"))
    sink.write(1, {"y": np.ones(3, np.float32)}, 1)
    with pytest.raises(DataError, match=r"sample 2: output y has the shape \[4\] after \[3\]"):
        sink.write(2, {"y": np.ones(4, np.float32)}, 1)
    sink.close()
    assert np.array_equal(np.load(tmp_path / "out.npy")[:2], [[np.nan] * 3, [1] * 3], equal_nan=True)


def test_strings_are_written_as_wide_as_the_longest(tmp_path):
    """A failed row is empty."""
    sink = open_sink(str(tmp_path / "out.npz"), model((TensorSpec("s", "BYTES", ()),)), None)
    sink.write(0, {"s": np.array(b"ab", object)}, 1)
    sink.write_error(1, DataError("no"))
    sink.write(2, {"s": np.array("ü".encode() * 9, object)}, 1)
    sink.close()
    assert np.load(tmp_path / "out.npz")["s"].tolist() == [b"ab", b"", "ü".encode() * 9]


def test_folder_that_holds_answers_is_not_written_over(tmp_path):
    """The sentence says how to go on; names of the source's files follow the number."""
    sink = open_sink(f"{tmp_path}/out/", model(), None)
    sink.write(0, row(0), 1, "deep.cat.png")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["00000000_deep.cat.npz"]
    with pytest.raises(DataError, match="holds the answers to 1 samples; continue after them by --resume"):
        open_sink(str(tmp_path / "out"), model(), None)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("out.csv", b"a,b,version\n1,2,3\n", "expected the columns of y, n and version, got a, b, version"),
        ("out.jsonl", b'{"z": 1}\n', "expected lines with y, n, got"),
        ("out.npz", b"no archive", "--resume can't read it"),
    ],
)
def test_output_of_something_else_is_not_gone_on_with(tmp_path, name, data, said):
    """It is left as it was."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=said):
        open_sink(str(tmp_path / name), model(), None, resume=True)
    assert (tmp_path / name).read_bytes() == data


def test_what_keeps_nothing_can_not_be_resumed(tmp_path):
    """Standard output and the Projector."""
    for target in ("-", f"projector:{tmp_path}"):
        with pytest.raises(UsageError, match="keeps no rows to continue after"):
            open_sink(target, model(), None, resume=True)
