"""The streaming engine against a real Triton."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import onnx_models
import pytest
from time_limits import LIMIT_S

from unitrain.client import Client
from unitrain.errors import ClientError, DataError, RequestError, UsageError


def numbered(count, start=0, n=3):
    for i in range(start, start + count):
        yield {"x": np.full(n, i, np.float32)}


def check_all(results, count, scales=(2,)):
    """Every sample has exactly one answer, in order, and the right one; returns the versions met."""
    seen = []
    for place, result in enumerate(results):
        assert result.index == place
        assert result.error is None
        assert any(np.array_equal(result.outputs["y"], np.full(3, s * place, np.float32)) for s in scales)
        seen.append(result.version)
    assert len(seen) == count
    return seen


def test_predict_takes_rows_with_or_without_batch_axis(server):
    """The outputs have a batch axis where the inputs had one."""
    with Client(server.url) as client:
        assert client.predict("linear", x=[1, 2, 3.5]).outputs["y"].tolist() == [2, 4, 7]
        answer = client.predict("linear", x=np.ones((4, 3), np.float32))
        assert answer.outputs["y"].shape == (4, 3)
        assert answer.version == 1
        assert answer.latency_ms > 0
        answer.outputs["y"][0] = 0  # what is answered belongs to the caller


def test_model_describes_itself_from_the_server_alone(server):
    """Names, versions, signature and batch size all come from the server."""
    with Client(server.url) as client:
        model = client.model("two")
        assert [str(t) for t in model.inputs] == ["a: FP32[2, 2]", "n: INT64[1]"]
        assert [str(t) for t in model.outputs] == ["sum: FP32[2, 2]", "count: INT64[1]"]
        assert (model.versions, model.max_batch_size, model.signature.batched) == ((1,), 64, True)
        assert client.models()["linear"] == [1]


@pytest.mark.parametrize(("batch_rows", "window"), [(None, 16), (1, 1), (1, 64), (7, 3), (64, 2), (64, 64)])
def test_order_is_kept_under_micro_batching(server, batch_rows, window):
    """Whatever the rows a request and the requests in flight, sample i's answer is the i-th."""
    with Client(server.url) as client:
        check_all(client.stream("linear", numbered(2000), batch_rows=batch_rows, window=window), 2000)


def test_single_samples_are_sent_together(server):
    """A fast source of single rows costs far fewer requests than rows."""
    with Client(server.url) as client:
        latencies = {r.latency_ms for r in client.stream("linear", numbered(6400))}
    assert len(latencies) <= 6400 / 16


def test_slow_source_is_answered_as_it_goes(server):
    """A sample's answer does not wait for the next sample."""
    asked = threading.Event()

    def source():
        yield {"x": np.zeros(3, np.float32)}
        assert asked.wait(LIMIT_S), "the first answer did not come while the source was waiting"
        yield {"x": np.ones(3, np.float32)}

    with Client(server.url) as client:
        results = client.stream("linear", source())
        assert next(results).index == 0
        asked.set()
        assert next(results).index == 1
        assert list(results) == []


def test_source_is_read_no_faster_than_it_is_answered(server):
    """An endless source is held back: no more than the window and a little is ever taken."""
    taken = 0

    def endless():
        nonlocal taken
        for sample in numbered(10**9):
            taken += 1
            yield sample

    with Client(server.url) as client:
        results = client.stream("linear", endless(), batch_rows=4, window=4)
        for _ in range(10):
            next(results)
        time.sleep(0.5)
        assert taken < 200
        results.close()


def test_one_bad_sample_fails_alone(server):
    """What the server refuses, what has a NaN and what does not fit each fail alone, in their place."""
    samples = [{"i": [i]} for i in (1, 2, 99, 3)] + [
        {"j": [1]},
        {"i": [4]},
        DataError("no such line"),
        {"i": [5]},
    ]
    with Client(server.url) as client:
        results = list(client.stream("picky", samples, batch_rows=8))
        bad = {"x": np.array([1, np.nan, 2], np.float32)}
        row = {"x": np.ones(3, np.float32)}
        nan = list(client.stream("linear", [row, bad, row, {"x": np.ones(2, np.float32)}, row]))
        allowed = list(client.stream("linear", [bad], allow_nan=True))
    assert [r.index for r in results] == list(range(8))
    assert [None if r.outputs is None else r.outputs["y"].tolist() for r in results] == [
        [10], [20], None, [30], None, [40], None, [50],
    ]  # fmt: skip
    assert isinstance(results[2].error, RequestError)
    assert "sample 2" in str(results[2].error)
    assert "no input j" in str(results[4].error)
    assert [r.error is None for r in nan] == [True, False, True, False, True]
    assert "sample 1: input x holds NaN at [1]" in str(nan[1].error)
    assert np.isnan(allowed[0].outputs["y"][1])


def test_whole_arrays_go_one_a_request_where_the_model_has_no_batch_axis(server):
    """max_batch_size 0: an array's first axis is the model's own business."""
    with Client(server.url) as client:
        samples = [{"x": np.full((rows, 3), rows, np.float32)} for rows in (1, 5, 2)]
        results = list(client.stream("whole", samples))
        assert client.predict("whole", samples[1]).outputs["y"].shape == (5, 3)
    assert [r.outputs["y"].shape for r in results] == [(1, 3), (5, 3), (2, 3)]


def test_samples_with_a_batch_axis_stay_together(server):
    """A sample of several rows is answered as one, beside single ones."""
    with Client(server.url) as client:
        results = list(
            client.stream("linear", [{"x": np.ones((5, 3), np.float32)}, *numbered(1), *numbered(1)])
        )
        long = list(client.stream("linear", [{"x": np.ones((65, 3), np.float32)}]))
    assert [r.outputs["y"].shape for r in results] == [(5, 3), (3,), (3,)]
    assert "takes 64 rows a request, got 65" in str(long[0].error)


def test_source_that_raises_ends_the_stream_after_what_came_before(server):
    """The source's own exception arrives after the answers to all it gave."""

    def source():
        yield from numbered(10)
        raise ZeroDivisionError("the camera fell over")

    seen = []
    with Client(server.url) as client, pytest.raises(ZeroDivisionError, match="camera"):
        seen.extend(client.stream("linear", source()))
    assert [r.index for r in seen] == list(range(10))


def test_stop_ends_an_endless_stream_with_what_is_in_flight(server):
    """After `stop` what was sent is answered and nothing more is."""
    stop = threading.Event()
    seen = []
    with Client(server.url) as client:
        for result in client.stream("linear", numbered(10**9), stop=stop):
            seen.append(result)
            if len(seen) == 100:
                stop.set()
    check_all(seen, len(seen))
    assert len(seen) < 100_000


@pytest.mark.parametrize("batch_rows", [0, 65])
def test_rows_beyond_the_servers_limit_are_refused(server, batch_rows):
    """The sentence names the range."""
    with Client(server.url) as client, pytest.raises(UsageError, match="takes 1 to 64 rows a request"):
        list(client.stream("linear", [], batch_rows=batch_rows))


def test_silent_server_costs_a_deadline_not_a_hang(triton):
    """A request without an answer in time is an error of its samples; the stream goes on when the server does."""
    onnx_models.publish_model(triton.repository)
    triton.wait_for("linear", 1)
    pid = triton.triton_pid
    with Client(triton.url) as client:
        client.model("linear")
        results = client.stream("linear", numbered(40), batch_rows=1, window=4, timeout_s=0.6)
        first = next(results)
        os.kill(pid, signal.SIGSTOP)
        try:
            threading.Timer(1.5, os.kill, (pid, signal.SIGCONT)).start()
            rest = list(results)
        finally:
            time.sleep(0.1)
            os.kill(pid, signal.SIGCONT)
    assert [r.index for r in (first, *rest)] == list(range(40))
    late = [r for r in rest if r.error is not None]
    assert late
    assert all(r.error.kind == "deadline" for r in late)
    assert all(np.array_equal(r.outputs["y"], np.full(3, 2 * r.index)) for r in rest if r.error is None)


def test_killed_server_loses_and_doubles_nothing(triton):
    """After kill -9 in mid-stream the supervisor restarts it and each sample still has exactly one answer."""
    onnx_models.publish_model(triton.repository)
    triton.wait_for("linear", 1)
    count, kills = 30_000, 2

    def slowly():
        for sample in numbered(count):
            if sample["x"][0] % 100 == 0:
                time.sleep(0.02)
            yield sample

    seen = []
    with Client(triton.url) as client:
        for result in client.stream("linear", slowly(), batch_rows=8, window=8):
            seen.append(result)
            if kills and len(seen) in (5_000, 20_000):
                kills -= 1
                os.kill(triton.triton_pid, signal.SIGKILL)
    check_all(seen, count)
    assert kills == 0


def test_versions_are_told_during_hot_swaps(triton):
    """While versions are published, none of the answers fails, and each says which version it is of."""
    onnx_models.publish_model(triton.repository, scale=1.0)
    triton.wait_for("linear", 1)
    stop = threading.Event()
    seen = []

    def publish():
        for version in (2, 3):
            onnx_models.publish_model(triton.repository, scale=float(version))
            triton.wait_for("linear", version)
            time.sleep(0.3)
        stop.set()

    worker = threading.Thread(target=publish)
    with Client(triton.url) as client:
        worker.start()
        ones = ({"x": np.ones(3, np.float32)} for _ in itertools.count())
        seen.extend(client.stream("linear", ones, batch_rows=4, stop=stop))
        worker.join()
    assert all(r.error is None for r in seen)
    assert {r.version for r in seen} == {1, 2, 3}
    assert all((r.outputs["y"] == r.version).all() for r in seen)


def test_server_away_for_too_long_gives_every_sample_its_error(triton):
    """After --retry-for what was taken has its error, in order, and the stream ends with a sentence."""
    onnx_models.publish_model(triton.repository)
    triton.wait_for("linear", 1)
    seen = []

    def source():
        for i, sample in enumerate(numbered(10**6)):
            if i == 100:
                triton.stop()
            yield sample

    with Client(triton.url) as client:
        results = client.stream("linear", source(), batch_rows=4, window=4, retry_for_s=1)
        with pytest.raises(ClientError, match="gave up after 1 s"):
            seen.extend(results)
    assert [r.index for r in seen] == list(range(len(seen)))
    assert seen[-1].error.kind == "unavailable"


def test_version_that_is_replaced_ends_the_stream_soon(triton):
    """A pinned version that is no longer served fails what is left within seconds, naming those that are."""
    onnx_models.publish_model(triton.repository, num_versions=1)
    triton.wait_for("linear", 1)
    seen, gone_s = [], 0.0

    def source():
        nonlocal gone_s
        for i, sample in enumerate(numbered(10**6)):
            if i == 100:
                onnx_models.publish_model(triton.repository, num_versions=1)
                triton.wait_for("linear", 2)
                gone_s = time.monotonic()
            yield sample

    with Client(triton.url) as client:
        results = client.stream("linear", source(), version=1, batch_rows=4, window=4, retry_for_s=LIMIT_S)
        with pytest.raises(ClientError, match="model linear has no version 1 any more; it has 2"):
            seen.extend(results)
    assert time.monotonic() - gone_s < 150
    assert [r.index for r in seen] == list(range(len(seen)))
    assert all(r.version in (0, 1) for r in seen)
    assert seen[-1].error.kind == "unavailable"


def test_model_is_waited_for(triton):
    """`wait` returns when the model is there; without it in time, the sentence says what is missing."""
    told = []
    with Client(triton.url) as client:
        with pytest.raises(ClientError, match="there is no model linear; the server has none ready yet"):
            client.wait("linear", timeout_s=0.3)
        timer = threading.Timer(0.5, onnx_models.publish_model, [triton.repository])
        timer.start()
        info = client.wait("linear", timeout_s=LIMIT_S, note=told.append)
        timer.join()
        assert (info.name, info.versions) == ("linear", (1,))
        assert client.predict("linear", x=[1, 2, 3]).version == 1
    assert len(told) == 1
    assert "waiting for the model: " in told[0]


def test_numbers_begin_where_they_are_told_to(server):
    """A stream that goes on after an earlier one numbers its results and its errors on from there."""
    with Client(server.url) as client:
        samples = [*numbered(2), {"x": np.ones(2, np.float32)}]
        results = list(client.stream("linear", samples, first_index=100))
    assert [r.index for r in results] == [100, 101, 102]
    assert "sample 102" in str(results[2].error)


def test_requests_over_the_limit_are_sent_in_parts(server, monkeypatch):
    """Where rows chosen for one request are too many bytes for a message, they go in two; alone they are refused."""
    monkeypatch.setattr("unitrain.client.streaming.protobuf_messages.MAX_PAYLOAD_BYTES", 100)
    with Client(server.url) as client:
        check_all(client.stream("linear", numbered(64), batch_rows=64), 64)
        [result] = client.stream("linear", [{"x": np.ones((9, 3), np.float32)}])
    assert "sample 0: a request of 108 bytes exceeds gRPC's limit of 100" in str(result.error)


def test_examples_of_the_docstrings_run(server):
    """Those of the client and of ClientIO, on a real server, and of the classes around them."""
    import doctest

    from unitrain.client import client, stream_stats
    from unitrain.client.io import client_io, samples
    from unitrain.client.streaming import requests
    from unitrain.commands import _parser

    runner = doctest.DocTestRunner()
    for module in (client, client_io, samples, requests, stream_stats, _parser):
        for test in doctest.DocTestFinder().find(module, extraglobs={"url": server.url}):
            runner.run(test)
    assert runner.tries == 16
    assert runner.failures == 0


@pytest.mark.slow
def test_stream_that_nobody_finishes_keeps_no_program_from_ending(server):
    """Left open in the middle of answers as a script ends; it used to hang in one of three to six."""
    code = (
        "import sys; import numpy as np; from unitrain.client import Client;"
        "stream = Client(sys.argv[1]).stream('linear', ({'x': np.ones(3, np.float32)} for _ in range(2000)));"
        "print(next(stream).index)"
    )
    for _ in range(8):
        command = [sys.executable, "-c", code, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
