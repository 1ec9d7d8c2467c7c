"""What appears in the repository is served, whatever else lies there."""

import os
import re
import shutil
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from asking import Load, ask
from onnx import TensorProto, helper
from onnx_models import linear_model, linear_signature, publish_broken, publish_model, save_graph
from triton_server import TritonServer
from tritonclient.utils import InferenceServerException

from unitrain.repository import Repository
from unitrain.signature import Signature, TensorSpec


def test_a_published_version_is_served_within_seconds(triton: TritonServer) -> None:
    """A rename into the repository is all that it takes."""
    version = publish_model(triton.repository, scale=2)
    began = time.monotonic()
    triton.wait_for("linear", version)
    assert time.monotonic() - began < 3
    rows = np.arange(6).reshape(2, 3)
    answer, answered_by = ask(triton.url, rows)
    np.testing.assert_allclose(answer, 2 * rows)
    assert answered_by == version


def test_ten_swaps_under_requests_fail_none_and_each_answer_names_its_version(triton: TritonServer) -> None:
    """Requests go on without a failure while versions come and go."""
    publish_model(triton.repository, scale=2)
    triton.wait_for("linear", 1)
    with Load(triton.url) as load:
        for version in range(2, 12):
            assert publish_model(triton.repository, scale=version + 1) == version
            triton.wait_for("linear", version)
        time.sleep(0.2)
    assert load.errors == []
    assert {1, 11} <= set(load.answered)
    assert len(load.answered) >= 9


def test_versions_in_quick_succession_every_third_broken_end_on_the_newest_good_one(
    triton: TritonServer,
) -> None:
    """Faster than they can be loaded: some are passed over, none of the requests fails."""
    publish_model(triton.repository, scale=2)
    triton.wait_for("linear", 1)
    with Load(triton.url) as load:
        for number in range(2, 12):
            if number % 3 == 0:
                publish_broken(triton.repository)
            else:
                publish_model(triton.repository, scale=number + 1)
            time.sleep(0.1)
        triton.wait_for("linear", 11)
    assert load.errors == []
    assert ask(triton.url, np.ones((1, 3)))[1] == 11


def test_a_broken_version_is_told_once_and_does_not_block_a_later_good_one(triton: TritonServer) -> None:
    """Good, broken, good: the third is served, the second is named with Triton's words and left alone."""
    publish_model(triton.repository, scale=2)
    triton.wait_for("linear", 1)
    broken = publish_broken(triton.repository)
    failed = triton.wait_for_event("failed")
    assert (failed["model"], failed["version"]) == ("linear", broken)
    assert f"linear/{broken}/model.onnx" in failed["reason"]
    assert "Protobuf" in failed["reason"]
    assert ask(triton.url, np.ones((1, 3)))[1] == 1
    publish_model(triton.repository, scale=4)
    triton.wait_for("linear", 3)
    assert triton.wait_for_event("loaded", accept=lambda e: 3 in e["versions"])["versions"] == [1, 3]
    time.sleep(1)
    assert len([event for event in triton.events() if event["event"] == "failed"]) == 1


def test_a_broken_version_is_tried_again_when_its_files_change(triton: TritonServer) -> None:
    """A repair in place is noticed."""
    broken = publish_broken(triton.repository)
    triton.wait_for_event("failed")
    linear_model(Repository(triton.repository).version_dir("linear", broken) / "model.onnx", 5)
    triton.wait_for("linear", broken)
    assert ask(triton.url, np.ones((1, 3)))[0][0, 0] == 5


def test_a_version_overwritten_by_an_older_file_is_loaded_anew(triton: TritonServer) -> None:
    """Triton compares times; what was copied with an old one is served all the same."""
    publish_model(triton.repository, scale=2)
    triton.wait_for("linear", 1)
    seen = len(triton.events())
    other = linear_model(triton.repository.parent / "other.onnx", 7)
    os.utime(other, (1_000_000_000, 1_000_000_000))
    other.replace(triton.repository / "linear" / "1" / "model.onnx")
    triton.wait_for_event("loaded", after=seen)
    assert ask(triton.url, np.ones((1, 3)))[0][0, 0] == 7


def test_a_version_overwritten_by_a_broken_file_serves_on_as_loaded(triton: TritonServer) -> None:
    """What was loaded answers until something good comes, which the broken file does not block."""
    publish_model(triton.repository, scale=2)
    triton.wait_for("linear", 1)
    (triton.repository / "linear" / "1" / "model.onnx").write_bytes(b"this is no graph")
    assert triton.wait_for_event("failed")["version"] == 1
    assert ask(triton.url, np.ones((1, 3)))[0][0, 0] == 2
    publish_model(triton.repository, scale=3)
    triton.wait_for("linear", 2)
    assert ask(triton.url, np.ones((1, 3)))[0][0, 0] == 3


def test_an_unreadable_configuration_changes_nothing_until_it_is_mended(triton: TritonServer) -> None:
    """It is told once, and what is served serves on."""
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    config = Repository(triton.repository).config_path("linear")
    text = config.read_text()
    config.write_text("max_batch_size: what\n")
    assert "config.pbtxt can't be read" in triton.wait_for_event("failed")["reason"]
    assert ask(triton.url, np.ones((1, 3)))[1] == 1
    config.write_text(text)
    publish_model(triton.repository, scale=3)
    triton.wait_for("linear", 2)
    assert len([event for event in triton.events() if event["event"] == "failed"]) == 1


def test_a_changed_configuration_is_loaded_and_a_vanished_model_unloaded(triton: TritonServer) -> None:
    """config.pbtxt and the folder itself are watched too."""
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    seen = len(triton.events())
    config = Repository(triton.repository).config_path("linear")
    config.write_text(config.read_text().replace("max_batch_size: 64", "max_batch_size: 2"))
    triton.wait_for_event("loaded", after=seen)
    with pytest.raises(InferenceServerException, match="batch-size must be <= 2"):
        ask(triton.url, np.ones((3, 3)))
    shutil.rmtree(triton.repository / "linear")
    assert triton.wait_for_event("unloaded")["model"] == "linear"
    with pytest.raises(InferenceServerException, match="unknown model"):
        ask(triton.url, np.ones((1, 3)))


def test_what_is_copied_by_hand_edited_in_place_or_away_for_a_moment_costs_no_answer(
    triton: TritonServer, tmp_path: Path
) -> None:
    """Temporary files, links to nowhere, a configuration or a root that is being exchanged: none is a wish to unload."""
    publish_model(triton.repository, scale=2)
    triton.wait_for("linear", 1)
    folder = triton.repository / "linear"
    publish_model(tmp_path / "other", scale=3)
    source = tmp_path / "other" / "linear" / "1"
    (source / "golden.npz").write_bytes(b"PK\x03\x04" + bytes(100))
    with Load(triton.url) as load:
        (folder / "1" / ".#model.onnx").symlink_to("somebody@nowhere")
        (folder / "1" / "circle").symlink_to("circle")
        end = time.monotonic() + 1
        while time.monotonic() < end:  # as rsync and editors do
            (folder / "1" / ".model.onnx.x7").write_bytes(b"half")
            (folder / "1" / ".model.onnx.x7").unlink()
        (folder / "config.pbtxt").rename(tmp_path / "config.pbtxt")
        assert "no config.pbtxt" in triton.wait_for_event("failed")["reason"]
        (tmp_path / "config.pbtxt").rename(folder / "config.pbtxt")
        triton.repository.rename(tmp_path / "away")
        triton.wait_for_event("unreadable")
        (tmp_path / "away").rename(triton.repository)
        graph = (source / "model.onnx").read_bytes()
        (folder / "2").mkdir()
        shutil.copy(source / "golden.npz", folder / "2")  # cut off
        with (folder / "2" / "model.onnx").open("wb", buffering=0) as file:
            file.write(graph[: len(graph) // 2])
            time.sleep(0.3)
            file.write(graph[len(graph) // 2 :])
        triton.wait_for("linear", 2)
        time.sleep(1.2)  # it is asked a question
    assert load.errors == []
    assert set(load.answered) == {1, 2}
    assert not {"unloaded", "restarting", "unhealthy"} & {event["event"] for event in triton.events()}


def test_a_folder_that_has_nothing_to_serve_is_told_and_other_names_of_files_are_taken(
    triton: TritonServer, tmp_path: Path
) -> None:
    """No version, no configuration, a version that is not there; `default_model_filename` names another file."""
    for name in ("unversioned", "unconfigured", "absent", "renamed"):
        publish_model(tmp_path, name)
    (tmp_path / "unversioned" / "1").rename(tmp_path / "unversioned" / "first")
    (tmp_path / "unconfigured" / "config.pbtxt").unlink()
    config = tmp_path / "absent" / "config.pbtxt"
    config.write_text(re.sub(r"latest \{[^}]*\}", "specific { versions: 7 }", config.read_text()))
    with (tmp_path / "renamed" / "config.pbtxt").open("a") as file:
        file.write('default_model_filename: "net.onnx"\n')
    (tmp_path / "renamed" / "1" / "model.onnx").rename(tmp_path / "renamed" / "1" / "net.onnx")
    for name in ("unversioned", "unconfigured", "absent", "renamed"):
        (tmp_path / name).rename(triton.repository / name)
    expected = {
        "unversioned": "put model.onnx into a folder with the version's number, such as unversioned/1",
        "unconfigured": "it has no config.pbtxt",
        "absent": "version_policy selects version 7, and there is 1",
    }
    for name, words in expected.items():
        failed = triton.wait_for_event("failed", accept=lambda event, name=name: event["model"] == name)
        assert words in failed["reason"]
    triton.wait_for("renamed", 1)
    assert ask(triton.url, np.ones((1, 3)), model="renamed")[0][0, 0] == 2


def test_the_admin_protocols_are_locked(triton: TritonServer) -> None:
    """By gRPC nobody loads a model or registers shared memory."""
    publish_model(triton.repository)
    triton.wait_for("linear", 1)
    with triton_grpc.InferenceServerClient(triton.url) as client:
        with pytest.raises(InferenceServerException, match="restricted"):
            client.unload_model("linear")
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_system_shared_memory_status()
    assert ask(triton.url, np.ones((1, 3)))[1] == 1


def test_numbers_of_every_kind_come_back_right(triton: TritonServer) -> None:
    """Values, not only shapes, survive the way through the stub."""
    kinds = ["FP16", "FP64", "INT32", "INT64", "UINT64"]
    for dtype in kinds:
        publish_model(triton.repository, f"linear_{dtype}", dtype=dtype)
    for dtype in kinds:
        triton.wait_for(f"linear_{dtype}", 1)
        rows = np.arange(6).reshape(2, 3).astype(linear_signature(3, dtype).inputs[0].numpy)
        with triton_grpc.InferenceServerClient(triton.url) as client:
            tensor = triton_grpc.InferInput("x", [2, 3], dtype)
            tensor.set_data_from_numpy(rows)
            answer = client.infer(f"linear_{dtype}", [tensor]).as_numpy("y")
        np.testing.assert_array_equal(answer, 2 * rows)
        assert answer.dtype == rows.dtype


def _collect(done: list[object], result: object, error: object) -> None:
    done.append(error or result)


def test_a_bad_request_fails_alone_in_its_batch(triton: TritonServer) -> None:
    """Requests that Triton batches are run together, and one by one where that fails."""

    def indexed(path: object) -> None:
        table = helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])
        node = helper.make_node("Gather", ["table", "index"], ["value"])
        shape = ["batch", 1]
        ends = {"index": (TensorProto.INT64, shape)}, {"value": (TensorProto.FLOAT, shape)}
        save_graph(path, [node], *ends, [table])

    signature = Signature(
        (TensorSpec("index", "INT64", (1,)),), (TensorSpec("value", "FP32", (1,)),), batched=True
    )
    delay = 300_000  # long enough that all ten lie in one batch
    publish_model(
        triton.repository, "table", signature=signature, fill=indexed, max_queue_delay_microseconds=delay
    )
    triton.wait_for("table", 1)
    with triton_grpc.InferenceServerClient(triton.url) as client:
        calls = []
        for index in [0, 1, 2, 99, 0, 1, 2, 0, 1, 2]:
            tensor = triton_grpc.InferInput("index", [1, 1], "INT64")
            tensor.set_data_from_numpy(np.array([[index]]))
            done: list[object] = []
            handle = client.async_infer("table", [tensor], callback=partial(_collect, done))
            calls.append((index, done, handle))
        deadline = time.monotonic() + 10
        while not all(done for _, done, _ in calls) and time.monotonic() < deadline:
            time.sleep(0.02)
        batches = client.get_inference_statistics("table").model_stats[0].batch_stats
    for index, done, _ in calls:
        if index == 99:
            assert isinstance(done[0], InferenceServerException)
            assert "out of" in str(done[0])
        else:
            assert done[0].as_numpy("value")[0, 0] == 10 * (index + 1)
    assert max(row.batch_size for row in batches) > 1


def test_requests_that_wait_share_a_run_though_none_is_held_up(triton: TritonServer) -> None:
    """A delay of 0, as models are published by default, batches what lies in the queue."""
    publish_model(triton.repository, max_queue_delay_microseconds=0)
    triton.wait_for("linear", 1)
    tensor = triton_grpc.InferInput("x", [1, 3], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 3), np.float32))
    done: list[object] = []
    with triton_grpc.InferenceServerClient(triton.url) as client:
        before = client.get_inference_statistics("linear").model_stats[0].execution_count
        client.start_stream(partial(_collect, done))
        for _ in range(300):
            client.async_stream_infer("linear", [tensor])
        deadline = time.monotonic() + 20
        while len(done) < 300 and time.monotonic() < deadline:
            time.sleep(0.02)
        runs = client.get_inference_statistics("linear").model_stats[0].execution_count - before
    assert len(done) == 300
    assert runs < 250


def test_a_graph_that_is_not_what_its_configuration_says_is_refused(triton: TritonServer) -> None:
    """The reason names the file and both types."""
    publish_model(triton.repository, signature=linear_signature(3, "FP64"))
    reason = triton.wait_for_event("failed")["reason"]
    assert "linear/1/model.onnx: the input x is TYPE_FP64 in config.pbtxt, TYPE_FP32 in the graph" in reason

    def sum_of_two(path: Path) -> None:
        kind = (TensorProto.FLOAT, ["batch", 3])
        save_graph(path, [helper.make_node("Add", ["x", "z"], ["y"])], {"x": kind, "z": kind}, {"y": kind})

    publish_model(triton.repository, "two", fill=sum_of_two)
    reason = triton.wait_for_event("failed", accept=lambda event: event["model"] == "two")["reason"]
    assert "the graph needs the input z, which config.pbtxt does not have" in reason
