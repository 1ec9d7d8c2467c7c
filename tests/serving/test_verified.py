"""`serve` believes no file that its manifest contradicts, and no version whose golden samples are answered otherwise."""

import json
import random
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from asking import Load, ask
from onnx import TensorProto, helper
from onnx_models import linear_model, linear_signature, prove, publish_model, save_graph
from triton_server import TritonServer

from unitrain.cli import main
from unitrain.durable import sha256_of
from unitrain.manifest import read_manifest
from unitrain.repository import Repository
from unitrain.repository.answers import Tolerance
from unitrain.tensors import Signature, TensorSpec

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
GOLDEN = {"x": ROWS}
Damage = Callable[[Path], None]


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _flip_weight(folder: Path) -> None:
    """The lowest exponent bit of the one weight, 3: the graph stays valid."""
    data = bytearray((folder / "model.onnx").read_bytes())
    place = data.index(np.float32(3).tobytes())
    data[place + 3] ^= 1
    (folder / "model.onnx").write_bytes(data)


def _flip_golden(folder: Path) -> None:
    _flip(folder / "golden.npz", 8 * 100)


def _flip_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"step": 20', '"step": 30'))


def _cut_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def _drop_digest(folder: Path) -> None:
    """Another graph, and a manifest of today's format whose digest was taken out."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["digest"]
    path.write_text(json.dumps(data))


def _other_weights_old_format(folder: Path) -> None:
    """As before there was a digest: hash of the graph corrected, golden samples left as they were."""
    linear_model(folder / "model.onnx", 7)
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["digest"]
    path.write_text(json.dumps(data | {"format": 1, "sha256": sha256_of(folder / "model.onnx")}))


DAMAGES: dict[str, tuple[Damage, str]] = {
    "weight": (_flip_weight, "model.onnx was changed"),
    "golden": (_flip_golden, "golden.npz was changed"),
    "manifest": (_flip_manifest, "its digest is not that of its content"),
    "cut": (_cut_manifest, "can't be read as a manifest"),
    "digest": (_drop_digest, "its digest is missing"),
    "old": (_other_weights_old_format, "answered otherwise than published"),
}


def _publish_damaged(root: Path, name: str, damage: Damage) -> int:
    """Publish a version of 3 * x that was damaged before it appeared."""

    def fill(path: Path) -> None:
        linear_model(path, 3)
        number = int(path.parent.name) if path.parent.name.isdecimal() else 2
        prove(path.parent, name, number, linear_signature(), GOLDEN)
        damage(path.parent)

    return publish_model(root, name, fill=fill)


def test_what_its_manifest_contradicts_is_set_aside_and_the_last_good_version_serves_on(
    triton: TritonServer,
) -> None:
    """A flipped weight, golden sample or manifest; a manifest cut off; one without its digest; other answers."""
    for name in DAMAGES:
        publish_model(triton.repository, name, golden=GOLDEN)
    for name in DAMAGES:
        triton.wait_for(name, 1, timeout_s=60)
    for name, (damage, _) in DAMAGES.items():
        assert _publish_damaged(triton.repository, name, damage) == 2
    for name, (_, reason) in DAMAGES.items():
        failed = triton.wait_for_event("failed", 60, lambda e, name=name: e["model"] == name)
        assert failed["version"] == 2
        assert reason in failed["reason"]
        assert failed["reason"].count("/") < 20
        answer, answered_by = ask(triton.url, ROWS, model=name)
        assert answered_by == 1
        np.testing.assert_array_equal(answer, 2 * ROWS)
    assert not [event for event in triton.events if event["event"] == "loaded" and 2 in event["versions"]]


def test_no_request_is_answered_by_a_damaged_version_and_the_next_good_one_is_served(
    triton: TritonServer,
) -> None:
    """Under requests: good, damaged, good; `Load` compares each answer."""
    publish_model(triton.repository, scale=2, golden=GOLDEN)
    triton.wait_for("linear", 1)
    with Load(triton.url) as load:
        _publish_damaged(triton.repository, "linear", _flip_weight)
        triton.wait_for_event("failed")
        publish_model(triton.repository, scale=4, golden=GOLDEN)
        triton.wait_for("linear", 3)
    assert load.errors == []
    assert 2 not in load.answered


def test_a_repaired_manifest_has_its_version_loaded(triton: TritonServer) -> None:
    """What lies beside the model counts, too: version 1 is tried again when its manifest changes."""
    publish_model(triton.repository, golden=GOLDEN)
    triton.wait_for("linear", 1)
    path = triton.repository / "linear" / "1" / "manifest.json"
    text, seen = path.read_text(), len(triton.events)
    path.write_text(text.replace('"step": 10', '"step": 12'))
    assert triton.wait_for_event("failed", after=seen)["version"] == 1
    assert ask(triton.url, ROWS)[1] == 1  # what was loaded serves on
    seen = len(triton.events)
    path.write_text(text)
    triton.wait_for_event("loaded", after=seen)


def test_everything_is_checked_again_when_triton_is_restarted(triton: TritonServer) -> None:
    """A version that was damaged behind `serve`'s back is not believed by the next Triton."""
    for scale in (2, 3):
        publish_model(triton.repository, scale=scale, golden=GOLDEN)
    triton.wait_for("linear", 2)
    folder = triton.repository / "linear" / "2"
    status = (folder / "model.onnx").stat()
    with (folder / "model.onnx").open("r+b") as file:  # the same inode, size and, in the end, time
        data = bytearray(file.read())
        data[data.index(np.float32(3).tobytes()) + 3] ^= 1
        file.seek(0)
        file.write(data)
    import os
    import signal

    os.utime(folder / "model.onnx", ns=(status.st_atime_ns, status.st_mtime_ns))
    seen = len(triton.events)
    os.kill(triton.triton_pid, signal.SIGKILL)
    assert triton.wait_for_event("failed", 60, after=seen)["version"] == 2
    triton.wait_for_event("loaded", 60, lambda e: e["versions"] == [1], after=seen)
    np.testing.assert_array_equal(ask(triton.url, ROWS)[0], 2 * ROWS)


def test_a_version_damaged_since_is_not_revived(triton: TritonServer) -> None:
    """When the process of a model is killed, its files are checked anew; the other version takes its place."""
    import os
    import signal

    from asking import stubs

    for scale in (2, 3):
        publish_model(triton.repository, scale=scale, golden=GOLDEN)
    triton.wait_for("linear", 2)
    folder = triton.repository / "linear" / "2"
    status = (folder / "model.onnx").stat()
    with (folder / "model.onnx").open("r+b") as file:
        data = bytearray(file.read())
        data[data.index(np.float32(3).tobytes()) + 3] ^= 1
        file.seek(0)
        file.write(data)
    os.utime(folder / "model.onnx", ns=(status.st_atime_ns, status.st_mtime_ns))
    seen = len(triton.events)
    for pid in stubs(triton.triton_pid):
        os.kill(pid, signal.SIGKILL)
    assert triton.wait_for_event("failed", 60, after=seen)["version"] == 2
    triton.wait_for_event("loaded", 60, lambda e: e["versions"] == [1], after=seen)
    np.testing.assert_array_equal(ask(triton.url, ROWS)[0], 2 * ROWS)
    assert not [event for event in triton.events if event["event"] == "restarting"]


def test_versions_of_every_kind_are_served_as_published(triton: TritonServer) -> None:
    """External data, strings, FP16, INT64, no golden samples, no manifest, and an old manifest without a digest."""

    def beside(path: Path) -> None:
        weights = onnx.numpy_helper.from_array(np.full((3,), 5, dtype=np.float32), "scale")
        kind = (TensorProto.FLOAT, ["batch", 3])
        save_graph(path, [helper.make_node("Mul", ["x", "scale"], ["y"])], {"x": kind}, {"y": kind}, [weights])
        onnx.save(
            onnx.load(path), path, save_as_external_data=True, location="model.onnx.data", size_threshold=0
        )

    def shout(path: Path) -> None:
        mark = helper.make_tensor("mark", TensorProto.STRING, [1], [b"!"])
        words = (TensorProto.STRING, ["batch", 2])
        nodes = [helper.make_node("StringConcat", ["x", "mark"], ["y"])]
        save_graph(path, nodes, {"x": words}, {"y": words}, [mark])

    words = Signature((TensorSpec("x", "BYTES", (2,)),), (TensorSpec("y", "BYTES", (2,)),), batched=True)
    root = triton.repository
    publish_model(root, "beside", fill=beside, golden=GOLDEN)
    publish_model(root, "shout", signature=words, fill=shout, golden={"x": np.array([["a", "größe"]])})
    publish_model(root, "half", dtype="FP16", golden={"x": ROWS.astype(np.float16)})
    publish_model(root, "whole", dtype="INT64", golden={"x": ROWS.astype(np.int64)})
    publish_model(root, "no_golden", proven=True)
    publish_model(root, "foreign")
    publish_model(root, "old", golden=GOLDEN)
    path = root / "old" / "1" / "manifest.json"
    data = json.loads(path.read_text())
    del data["digest"]
    path.write_text(json.dumps(data | {"format": 1}))
    for name in ("beside", "shout", "half", "whole", "no_golden", "foreign", "old"):
        triton.wait_for(name, 1, timeout_s=60)

    def damaged(path: Path) -> None:
        beside(path)
        prove(path.parent, "beside", 2, linear_signature(), GOLDEN)
        _flip(path.parent / "model.onnx.data", 3)

    publish_model(root, "beside", fill=damaged)
    assert "model.onnx.data was changed" in triton.wait_for_event("failed")["reason"]
    seen = len(triton.events)
    publish_model(
        root, "no_golden", fill=lambda p: (linear_model(p, 3), prove(p.parent, "n", 2, linear_signature()), _flip_weight(p.parent)) and None
    )
    assert "model.onnx was changed" in triton.wait_for_event("failed", after=seen)["reason"]


def test_a_version_rolled_back_is_verified_and_served(
    triton: TritonServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """`models rollback` writes a manifest that is believed."""
    for scale in (2, 3):
        publish_model(triton.repository, scale=scale, golden=GOLDEN)
    triton.wait_for("linear", 2)
    assert main(["models", "rollback", "linear", "1", "--model-repository", str(triton.repository)]) == 0
    capsys.readouterr()
    triton.wait_for("linear", 3)
    np.testing.assert_array_equal(ask(triton.url, ROWS)[0], 2 * ROWS)
