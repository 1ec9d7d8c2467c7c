"""What long runs need of `predict`: going on, waiting, giving up, folders, windows, progress."""

import json
import re
import socket
import subprocess
import sys
import time

import numpy as np
import onnx_models
import pytest
from predict_files import ROWS, read_rows, read_text, write_rows
from predict_process import run_predict
from time_limits import LIMIT_S
from triton_server import TritonServer

from unitrain.errors import ClientError


@pytest.fixture
def rows():
    return np.random.default_rng(1).normal(size=(ROWS, 3)).astype(np.float32)


def test_errors_beyond_the_most_end_the_run(predict, tmp_path, rows):
    """Up to --max-errors the run goes on and ends with 1; at one more it ends at once, and says so."""
    rows[2:5] = np.nan
    source = write_rows(tmp_path / "in.npy", rows)
    ran = predict("linear", "--input", source, "--max-errors", 3, "--json")
    assert (ran.code, json.loads(ran.out)["samples"]) == (1, ROWS)
    ran = predict(
        "linear", "--input", source, "--max-errors", 2, "--batch-rows", 1, "--output", tmp_path / "out.csv"
    )
    assert ran.code == 1
    assert (
        "gave up after 3 of 5 samples failed (--max-errors 2), the last: sample 4: input x holds NaN"
        in ran.err
    )
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize("sink", ["out.csv", "out.jsonl", "out.npz", "out.npy", "out/"])
def test_resumed_run_ends_as_an_uninterrupted_one(predict, tmp_path, sink):
    """--count 40 of 100 rows, then --resume: every row once, with the numbers of the source."""
    rows = np.arange(300, dtype=np.float32).reshape(100, 3)
    source, target = write_rows(tmp_path / "in.npy", rows), f"{tmp_path}/{sink}"
    words = ("linear", "--input", source, "--output", target)
    assert predict(*words, "--count", 40).code == 0
    ran = predict(*words, "--resume", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["samples"] == 60
    assert "continues after the 40 existing samples" in ran.err
    if sink == "out/":
        outputs = np.array([np.load(p)["y"] for p in sorted((tmp_path / "out").iterdir())])
    else:
        outputs, _ = read_rows(tmp_path / sink)
    assert np.array_equal(outputs, 2 * rows)
    ran = predict(*words, "--resume", "--json")
    assert json.loads(ran.out)["samples"] == 0


def test_window_slides_over_standard_input(predict):
    """A signal that comes step by step is answered window by window."""
    ran = predict(
        "linear",
        "--input",
        "-",
        "--window-steps",
        3,
        "--hop-steps",
        2,
        stdin="x\n" + "".join(f"{i}\n" for i in range(8)),
    )
    assert ran.code == 0, ran.err
    outputs, _ = read_text(ran.out, ".jsonl")
    assert outputs.tolist() == [[0, 2, 4], [4, 6, 8], [8, 10, 12]]


def test_folder_of_files_goes_to_a_folder_of_files(predict, tmp_path):
    """Each answer has the number and the name of its file; one that is wrong has its error beside them."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i, name in enumerate(("cat", "dog")):
        np.save(folder / f"{name}.npy", np.full(3, i, np.float32))
    (folder / "emu.npy").write_bytes(b"")
    ran = predict("linear", "--input", folder, "--output", f"{tmp_path}/out/", "--shm")
    assert ran.code == 1
    assert "1 of 3 samples failed" in ran.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "00000000_cat.npz",
        "00000001_dog.npz",
        "00000002.error.txt",
    ]
    assert np.load(tmp_path / "out" / "00000001_dog.npz")["y"].tolist() == [2, 2, 2]
    ran = predict("linear", "--input", f"{folder}/[cd]*.npy", "--output", "-")
    assert [json.loads(line)["source"] for line in ran.out.splitlines()] == ["cat.npy", "dog.npy"]


def test_server_and_model_are_waited_for(tmp_path, triton_wheel):
    """`--wait` before there is a server, and then before there is a model; in vain it is one sentence."""
    ran = run_predict("linear", "--input", "random", "--url", "127.0.0.1:1", "--wait", "0.5")
    assert ran.code == 1
    assert ran.err.splitlines()[0].startswith("note: waiting for the model: 127.0.0.1:1: no server answers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = TritonServer(
        tmp_path / "repository", log=tmp_path / "log", options=("--grpc-port", port, "--grace", "0")
    )
    words = ["predict", "--url", f"127.0.0.1:{port}", "--input", "random", "--json", "--wait", "linear"]
    with subprocess.Popen(
        [sys.executable, "-m", "unitrain", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert "waiting for the model" in process.stderr.readline()
            server.start()
            onnx_models.publish_model(server.repository)
            out, err = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
            server.stop()
    assert process.returncode == 0, err
    assert json.loads(out)["versions"] == {"1": 1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--input", "random", "--hop-steps", 2], "--hop-steps needs --window-steps"),
        (["--input", "random", "--window-steps", 2], "--window-steps needs an --input that holds a signal"),
        (["--input", "random", "--resume"], "--resume needs an --input and an --output"),
        (["--input", "random", "--output", "-", "--resume"], "--resume: - keeps no rows"),
        (["--input", "random", "--max-errors", -1], "--max-errors: expected 0 or more, got -1"),
        (["--input", "random", "--wait", -1], "--wait: expected 0 seconds or more, got -1.0"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(predict, words, said):
    """Exit 2, before anything is asked."""
    ran = predict("linear", *words)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_progress_tells_rate_and_time_left():
    """A line has what is done, of how many, the rate, the rest of the time, and what failed."""
    from unitrain.client import Result
    from unitrain.client.stream_stats import StreamStatistics
    from unitrain.commands._output import line, progress

    report = StreamStatistics()
    time.sleep(0.1)
    for i in range(50):
        report.count(Result(i, None if i < 2 else {}, 1, 1.0, ClientError("no") if i < 2 else None))
    told = line(report, 10_000)
    rate = int(re.fullmatch(r"50 of 10,000 samples, (\d+)/s, 0:\d\d:\d\d left, 2 failed", told)[1])
    assert 100 < rate <= 500
    assert re.fullmatch(r"50 samples, \d+/s, 2 failed", line(report, None))
    with progress(report, 10_000) as show:
        show()
