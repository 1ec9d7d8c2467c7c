"""`serve` believes no file that its manifest contradicts, and no version whose golden samples are answered otherwise."""

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from asking import Load, ask, stubs
from onnx import TensorProto, helper
from onnx_models import linear_model, linear_signature, prove, publish_model, save_graph
from triton_server import TritonServer, native_tritonserver

from unitrain.atomic_files import sha256_of
from unitrain.cli import main
from unitrain.client import Client
from unitrain.errors import RepositoryError
from unitrain.serving.model_security import check_numbers
from unitrain.serving.server_registry import runtime_dir
from unitrain.serving.status import server_status
from unitrain.serving.triton.distribution import find_triton
from unitrain.signature import Signature, TensorSpec

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


def _flip_unseen(folder: Path) -> None:
    """As `_flip_weight`, with the same inode, size and time: as a disk loses a bit."""
    path = folder / "model.onnx"
    before = path.stat()
    data = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(data.index(np.float32(3).tobytes()) + 3)
        file.write(bytes([data[file.tell()] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _flip_golden(folder: Path) -> None:
    _flip(folder / "golden.npz", 8 * 100)


def _flip_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"weights": "ema"', '"weights": "raw"'))


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
    "old": (_other_weights_old_format, "give other answers than when they were published"),
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
    assert not [event for event in triton.events() if event["event"] == "loaded" and 2 in event["versions"]]


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
    text, seen = path.read_text(), len(triton.events())
    path.write_text(text.replace('"step": 10', '"step": 12'))
    assert triton.wait_for_event("failed", after=seen)["version"] == 1
    assert ask(triton.url, ROWS)[1] == 1  # what was loaded serves on
    seen = len(triton.events())
    path.write_text(text)
    triton.wait_for_event("loaded", after=seen)


def test_everything_is_checked_again_when_triton_is_restarted(triton: TritonServer) -> None:
    """A version that was damaged behind `serve`'s back is not believed by the next Triton."""
    for scale in (2, 3):
        publish_model(triton.repository, scale=scale, golden=GOLDEN)
    triton.wait_for("linear", 2)
    _flip_unseen(triton.repository / "linear" / "2")
    seen = len(triton.events())
    os.kill(triton.triton_pid, signal.SIGKILL)
    assert triton.wait_for_event("failed", 60, after=seen)["version"] == 2
    triton.wait_for_event("loaded", 60, lambda e: e["versions"] == [1], after=seen)
    np.testing.assert_array_equal(ask(triton.url, ROWS)[0], 2 * ROWS)


def test_a_version_damaged_since_is_not_revived(triton: TritonServer) -> None:
    """When the process of a model is killed, its files are checked anew; the other version takes its place."""
    for scale in (2, 3):
        publish_model(triton.repository, scale=scale, golden=GOLDEN)
    triton.wait_for("linear", 2)
    _flip_unseen(triton.repository / "linear" / "2")
    seen = len(triton.events())
    for pid in stubs(triton.triton_pid):
        os.kill(pid, signal.SIGKILL)
    assert triton.wait_for_event("failed", 60, after=seen)["version"] == 2
    triton.wait_for_event("loaded", 60, lambda e: e["versions"] == [1], after=seen)
    np.testing.assert_array_equal(ask(triton.url, ROWS)[0], 2 * ROWS)
    assert not [event for event in triton.events() if event["event"] == "restarting"]


def test_versions_of_every_kind_are_served_as_published(triton: TritonServer) -> None:
    """External data, strings, FP16, INT64, no golden samples, no manifest, and an old manifest without a digest."""

    def beside(path: Path) -> None:
        weights = onnx.numpy_helper.from_array(np.full((3,), 5, dtype=np.float32), "scale")
        kind = (TensorProto.FLOAT, ["batch", 3])
        save_graph(
            path, [helper.make_node("Mul", ["x", "scale"], ["y"])], {"x": kind}, {"y": kind}, [weights]
        )
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
    seen = len(triton.events())

    def unproven(path: Path) -> None:
        linear_model(path, 3)
        prove(path.parent, "no_golden", 2, linear_signature())
        _flip_weight(path.parent)

    publish_model(root, "no_golden", fill=unproven)
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


def _same(path: Path) -> None:
    words = (TensorProto.STRING, ["batch"])
    save_graph(path, [helper.make_node("Identity", ["x"], ["y"])], {"x": words}, {"y": words})


@pytest.fixture
def native(tmp_path: Path, triton_wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonServer]:
    """A `serve` on a `tritonserver` whose backend loads whatever it is given, as the native one does."""
    backends = find_triton().backends_dir
    assert backends is not None
    shutil.copytree(backends, tmp_path / "backends")
    with (tmp_path / "backends" / "onnxruntime" / "integrity.py").open("a") as file:
        file.write("\n\ndef read_checked(*_, **__):\n    return None\n")
    program = native_tritonserver(tmp_path / "bin", backends_dir=tmp_path / "backends")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    server = TritonServer(tmp_path / "repository", log=tmp_path / "triton.log")
    try:
        yield server.start()
    finally:
        server.stop(timeout_s=0)


def test_with_a_native_backend_a_version_is_tried_under_another_name_first(native: TritonServer) -> None:
    """What is damaged never answers under the model's name; what is tried is no model to clients, and leaves nothing."""
    seen_models = set()
    over = threading.Event()

    def look() -> None:
        with Client(native.url) as client:
            while not over.is_set():
                seen_models.update(client.models())

    looker = threading.Thread(target=look)
    looker.start()
    try:
        publish_model(native.repository, scale=2, golden=GOLDEN)
        native.wait_for("linear", 1)
        with Load(native.url) as load:
            for damage in (_flip_weight, _other_weights_old_format, _flip_manifest):
                seen = len(native.events())
                _publish_damaged(native.repository, "linear", damage)
                native.wait_for_event("failed", after=seen)
            publish_model(native.repository, scale=6, golden=GOLDEN, max_batch_size=64)
            native.wait_for("linear", 5)
    finally:
        over.set()
        looker.join()
    assert load.errors == []
    assert set(load.answered) <= {1, 5}
    assert seen_models == {"linear"}
    reasons = [event["reason"] for event in native.events() if event["event"] == "failed"]
    words = Signature((TensorSpec("x", "BYTES", ()),), (TensorSpec("y", "BYTES", ()),), batched=True)
    publish_model(
        native.repository, "texts", signature=words, fill=_same, golden={"x": np.array(["a", "größe"])}
    )
    publish_model(
        native.repository, "values", n=None, golden={"x": np.arange(9, dtype=np.float32)}, max_batch_size=4
    )

    def odd(path: Path) -> None:
        linear_model(path)
        np.savez(path.parent / "golden.npz", **{"inputs/x": np.float32(1), "outputs/y": np.float32(2)})
        prove(path.parent, "odd", 1, linear_signature())

    publish_model(native.repository, "odd", fill=odd)
    for name in ("texts", "values"):
        native.wait_for(name, 1)
    assert (
        "can't be verified" in native.wait_for_event("failed", accept=lambda e: e["model"] == "odd")["reason"]
    )
    assert "model.onnx was changed" in reasons[0]
    assert "give other answers than when they were published" in reasons[1]
    assert "its digest is not that" in reasons[2]
    assert "unitrain_candidate_" in native.log.read_text()
    status = server_status(native.url)
    assert {row.model for row in status.versions} == {"linear", "odd", "texts", "values"}
    assert not list(runtime_dir().glob("*candidates/*"))
    assert {p.name for p in native.repository.iterdir()} == {"linear", "odd", "texts", "values"}


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("instance_group { count: 2000000000 }", "instance_group.count: 2000000000"),
        (
            'parameters { key: "intra_op_thread_count" value { string_value: "100000" } }',
            "thread_count: 100000",
        ),
        ("dynamic_batching { priority_levels: 4000000000 }", "priority_levels: 4000000000"),
        ('model_warmup { name: "w" count: 2000000000 }', "model_warmup.count: 2000000000"),
        (
            'model_warmup { name: "w" batch_size: 9 inputs { key: "x" value { dims: 2000000000 zero_data: true } } }',
            "model_warmup (bytes)",
        ),
        ("max_batch_size: 2000000000 sequence_batching { }", "max_batch_size (of sequences)"),
        ("sequence_batching { oldest { max_candidate_sequences: 2000000000 } }", "max_candidate_sequences"),
    ],
)
def test_a_number_that_would_fill_the_machine_is_refused(text: str, field: str) -> None:
    """In a sentence that names it."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    with pytest.raises(RepositoryError, match=re.escape(field)):
        check_numbers(config)


def test_numbers_and_scalar_outputs_that_triton_can_not_have_are_told(triton: TritonServer) -> None:
    """A configuration of two billion processes; a graph whose output has no axis at all."""

    def scalar(path: Path) -> None:
        kind = (TensorProto.FLOAT, ["batch", 3])
        nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)]
        save_graph(path, nodes, {"x": kind}, {"y": (TensorProto.FLOAT, [])})

    def scalar_with_samples(path: Path) -> None:
        scalar(path)
        prove(path.parent, "loss_proven", 1, signature, GOLDEN)

    signature = Signature((TensorSpec("x", "FP32", (3,)),), (TensorSpec("y", "FP32", ()),), batched=True)
    publish_model(triton.repository, "loss", signature=signature, fill=scalar)
    publish_model(triton.repository, "loss_proven", signature=signature, fill=scalar_with_samples)
    whole = Signature(signature.inputs, signature.outputs, batched=False)
    publish_model(triton.repository, "loss_whole", signature=whole, fill=scalar)
    publish_model(triton.repository.parent / "other", "many")
    config = triton.repository.parent / "other" / "many" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1\n", "count: 2000000000\n"))
    config.parent.rename(triton.repository / "many")
    failed = triton.wait_for_event("failed", accept=lambda e: e["model"] == "many")
    assert "instance_group.count: 2000000000" in failed["reason"]
    for name in ("loss", "loss_proven"):
        failed = triton.wait_for_event("failed", accept=lambda e, name=name: e["model"] == name)
        assert "the output y has no batch axis" in failed["reason"]
    failed = triton.wait_for_event("failed", accept=lambda e: e["model"] == "loss_whole")
    assert "config.pbtxt has the output y without any axis" in failed["reason"]


def test_no_flipped_bit_is_served(triton: TritonServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the benchmark does by the thousand: graph, external data, golden samples and manifest."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from bitflips import flip_bits

    figures = flip_bits(triton, 24, models=2, at_once=12, seed=1)
    assert figures["good"], figures
    assert figures["flips"] == figures["reported as failed"] == 24
