"""One comparison of golden samples, and single values a row, against a real Triton."""

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx_models
import pytest
from onnx import TensorProto, helper

from unitrain.cli import main
from unitrain.client import Client
from unitrain.client.golden import check_served
from unitrain.errors import RepositoryError
from unitrain.repository import read_config
from unitrain.repository.integrity import MOST_GOLDEN_BYTES
from unitrain.repository.onnx_session import Tolerance
from unitrain.repository.tolerance import compare
from unitrain.repository.verify import check_golden, read_golden
from unitrain.serving.sample_requests import probe_request
from unitrain.signature import Signature, TensorSpec


@pytest.fixture(scope="module")
def values(server):
    """`lines` (y = 2 x in FP32), `counts` (INT64) and `single` (a value a row), served without a manifest."""
    onnx_models.publish_model(server.repository, "lines")
    onnx_models.publish_model(server.repository, "counts", dtype="INT64")
    for name in ("lines", "counts"):
        server.wait_for(name, 1)
    return server


def _published(root: Path, name: str, tolerance: Tolerance, off: float, dtype: str) -> Path:
    """The version as it would have been published, its golden outputs off by that much."""
    x = np.full((2, 3), 0.5, np.float32) if dtype == "FP32" else np.full((2, 3), 500)

    def fill(path: Path) -> None:
        onnx_models.linear_model(path, 2, 3, dtype)
        np.savez(path.parent / "golden.npz", **{"inputs/x": x, "outputs/y": (2 * x + off).astype(x.dtype)})
        onnx_models.prove(path.parent, name, 1, onnx_models.linear_signature(3, dtype), tolerance=tolerance)

    onnx_models.publish_model(root, name, dtype=dtype, fill=fill)
    return root / name / "1"


@pytest.mark.parametrize(
    "case",
    [
        ("lines", "FP32", Tolerance(absolute=0.01, relative=0), 0.005, True),
        ("lines", "FP32", Tolerance(absolute=0.001, relative=0), 0.005, False),
        ("counts", "INT64", Tolerance(absolute=5, relative=1), 1, False),
        ("counts", "INT64", Tolerance(integer_share=1.0), 1, True),
    ],
)
def test_predict_and_verify_give_the_same_verdict(predict, values, tmp_path, capsys, case):
    """By the tolerances of the version; an integer is equal or not, however large it is."""
    name, dtype, tolerance, off, passes = case
    folder = _published(tmp_path, name, tolerance, off, dtype)
    ran = predict(name, "--input", "golden", "--model-repository", tmp_path)
    assert ran.code == (0 if passes else 1), ran.err
    words = ("--model-repository", str(tmp_path), "--url", values.url, "--json")
    assert main(["models", "verify", name, "1", *words]) == (0 if passes else 1)
    told = {check["name"]: check["passed"] for check in json.loads(capsys.readouterr().out)}
    assert told["golden"] is told["served"] is passes
    assert check_golden(folder).passed is check_served(folder, name, 1, values.url).passed is passes


def test_large_integers_and_strings_are_compared_exactly():
    """2^60 and 2^60 + 1 are equal as floats."""
    large = {"y": np.array([2**60])}
    assert compare(large, {"y": large["y"] + 1}, Tolerance()).failure is not None
    assert compare(large, {"y": large["y"].copy()}, Tolerance()).failure is None
    texts = {"y": np.array(["a", "größe"])}
    same = {"y": np.array([b"a", "größe".encode()], dtype=object)}
    assert compare(texts, same, Tolerance()).failure is None
    assert "is other" in str(compare(texts, {"y": np.array(["a", "other"])}, Tolerance()).failure)


def _two_singles(path: Path) -> None:
    """`total` = a + the sum of x, `text` = the text with a mark, `place` = argmax of x; each a value a row."""
    onnx_models.save_graph(
        path,
        [
            helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=0),
            helper.make_node("Add", ["sum", "a"], ["total"]),
            helper.make_node("ArgMax", ["x"], ["place"], axis=1, keepdims=0),
            helper.make_node("StringConcat", ["word", "mark"], ["text"]),
        ],
        {
            "a": (TensorProto.FLOAT, ["batch"]),
            "x": (TensorProto.FLOAT, ["batch", 3]),
            "word": (TensorProto.STRING, ["batch"]),
        },
        {
            "total": (TensorProto.FLOAT, ["batch"]),
            "place": (TensorProto.INT64, ["batch"]),
            "text": (TensorProto.STRING, ["batch"]),
        },
        [
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("mark", TensorProto.STRING, [1], [b"!"]),
        ],
    )


MIXED = Signature(
    (TensorSpec("a", "FP32", ()), TensorSpec("x", "FP32", (3,)), TensorSpec("word", "BYTES", ())),
    (TensorSpec("total", "FP32", ()), TensorSpec("place", "INT64", ()), TensorSpec("text", "BYTES", ())),
    batched=True,
)


@pytest.fixture(scope="module")
def singles(server):
    """`single` (y = 2 x, both [rows]) and `mixed`, published with golden samples."""
    golden = {"x": np.arange(5, dtype=np.float32)}
    onnx_models.publish_model(server.repository, "single", n=None, golden=golden, max_batch_size=4)
    mixed = {
        "a": np.array([1, 2], np.float32),
        "x": np.array([[1, 5, 2], [9, 1, 1]], np.float32),
        "word": np.array(["a", "größe"]),
    }
    onnx_models.publish_model(server.repository, "mixed", signature=MIXED, fill=_two_singles, golden=mixed)
    for name in ("single", "mixed"):
        server.wait_for(name, 1)
    return server


def test_a_value_a_row_comes_back_as_the_graph_gives_it(singles):
    """[rows] in and out, by single requests, streams and shared memory; a bare number is one row."""
    x = np.arange(4, dtype=np.float32)
    with Client(singles.url) as client:
        assert client.model("single").signature.outputs == (TensorSpec("y", "FP32", ()),)
        for given in (x, x[:, None]):  # as Triton's own clients give it
            answer = client.predict("single", x=given).outputs["y"]
            assert answer.shape == (4,)
            np.testing.assert_array_equal(answer, 2 * x)
        one = client.predict("single", x=3.0).outputs["y"]
        assert (type(one), one.shape, one.dtype, float(one)) == (np.ndarray, (), np.float32, 6.0)
        for shared_memory in (False, True):
            samples = [*({"x": v} for v in x), {"x": x[:2]}, {"x": 7}]
            found = [r.outputs["y"] for r in client.stream("single", samples, shared_memory=shared_memory)]
            assert [v.shape for v in found] == [(), (), (), (), (2,), ()]
            assert all(type(v) is np.ndarray for v in found)
            np.testing.assert_array_equal(np.hstack(found), 2 * np.hstack([x, x[:2], [7]]))
        row = {"a": np.float32(1), "x": [1, 5, 2], "word": "a"}
        for outputs in (
            client.predict("mixed", row).outputs,
            next(client.stream("mixed", [row])).outputs,
            [*client.stream("mixed", [row, row])][1].outputs,
        ):
            assert {name: (array.shape, array.item()) for name, array in outputs.items()} == {
                "total": ((), 9.0),
                "place": ((), 1),
                "text": ((), b"a!"),
            }


def test_a_value_a_row_is_a_column_and_passes_its_golden_samples(predict, singles, tmp_path, capsys):
    """`predict` reads and writes it as scalars; golden samples and `models verify` pass."""
    for name in ("single", "mixed"):
        ran = predict(name, "--input", "golden", "--model-repository", singles.repository)
        assert ran.code == 0, ran.err
        words = ("--model-repository", str(singles.repository), "--url", singles.url, "--json")
        assert main(["models", "verify", name, *words]) == 0
        told = {check["name"]: check["passed"] for check in json.loads(capsys.readouterr().out)}
        assert told["golden"] is told["served"] is True
    source = tmp_path / "in.csv"
    source.write_text("x\n1\n2.5\n")
    for form, written in (
        ("csv", "y,version\n2.0,1\n5.0,1\n"),
        ("jsonl", None),
        ("npz", None),
        ("npy", None),
    ):
        target = tmp_path / f"out.{form}"
        ran = predict("single", "--input", source, "--output", target)
        assert ran.code == 0, ran.err
        if written is not None:
            assert target.read_text().replace("\r", "") == written
        elif form == "jsonl":
            assert [json.loads(line)["y"] for line in target.read_text().splitlines()] == [2, 5]
        else:
            found = np.load(target)
            found = found["y"] if form == "npz" else found
            assert found.shape == (2,)
            np.testing.assert_array_equal(found, [2, 5])
    for shape in ((2,), (2, 1)):
        np.savez(tmp_path / "in.npz", x=np.array([1, 2.5], np.float32).reshape(shape))
        assert predict("single", "--input", tmp_path / "in.npz", "--output", tmp_path / "again.npy").code == 0
        np.testing.assert_array_equal(np.load(tmp_path / "again.npy"), [2, 5])
    assert predict("mixed", "--input", "random", "--output", tmp_path / "out.csv").code == 0
    assert (tmp_path / "out.csv").read_text().startswith("total,place,text,version")


def test_a_golden_archive_is_read_no_further_than_the_limit(predict, values, tmp_path):
    """A small file that unpacks to gigabytes, one whose array is larger than what it holds, one of objects."""
    version_dir = _published(tmp_path, "lines", Tolerance(), 0, "FP32")
    path = version_dir / "golden.npz"

    def refused(words: str) -> None:
        with pytest.raises(RepositoryError, match=words):
            read_golden(version_dir)
        assert check_golden(version_dir).passed is False
        assert predict("lines", "--input", "golden", "--model-repository", tmp_path).code == 1
        config = read_config(tmp_path / "lines" / "config.pbtxt")
        request = probe_request(config, 1, version_dir)  # of zeros then
        assert request is not None
        assert request.raw_input_contents[0] == bytes(12)

    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("inputs/x.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (MOST_GOLDEN_BYTES // 4,)}
        )
        block = bytes(1 << 24)
        for _ in range(MOST_GOLDEN_BYTES // len(block)):
            file.write(block)
    assert path.stat().st_size < 2 << 20
    refused("bytes uncompressed, more than")
    with zipfile.ZipFile(path, "w") as archive, archive.open("inputs/x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)}
        )
    refused("which it does not hold")
    np.savez(path, **{"inputs/x": np.array([{}], dtype=object)})
    refused("which it does not hold")
    np.savez(path, x=np.zeros((2, 3), np.float32))
    refused("has no arrays named")
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    refused("can't be read")
