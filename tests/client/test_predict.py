"""The command, as a process, against a real Triton."""

import json
import subprocess
import sys

import numpy as np
import pytest
from predict_files import ROWS, read_rows, read_text, write_rows
from predict_process import run_predict
from time_limits import LIMIT_S, wait_until


@pytest.fixture
def rows():
    return np.random.default_rng(1).normal(size=(ROWS, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("source", "sink"),
    [(".csv", ".npz"), (".npy", ".csv"), (".npz", ".jsonl"), (".jsonl", ".npy"), (".csv", ".csv")],
)
def test_every_format_round_trips(predict, tmp_path, rows, source, sink):
    """From each kind of file to each kind of file, to the bit."""
    target = tmp_path / f"out{sink}"
    ran = predict(
        "linear", "--input", write_rows(tmp_path / f"in{source}", rows), "--output", target, "--json"
    )
    assert ran.code == 0, ran.err
    outputs, versions = read_rows(target)
    assert np.array_equal(outputs, 2 * rows)
    assert versions in (None, [1] * ROWS)
    report = json.loads(ran.out)
    assert (report["samples"], report["versions"], report["errors"]) == (ROWS, {"1": ROWS}, {})
    latency = report["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] < 10_000
    assert [(c["version"], c["after_s"] > 0) for c in report["version_changes"]] == [(1, True)]


@pytest.mark.parametrize("kind", [".csv", ".jsonl"])
def test_standard_input_goes_to_standard_output(predict, tmp_path, rows, kind):
    """`--input -` tells CSV from JSON lines, and the report keeps out of the answers' way."""
    ran = predict("linear", "--input", "-", stdin=write_rows(tmp_path / f"in{kind}", rows).read_text())
    assert ran.code == 0, ran.err
    outputs, _ = read_text(ran.out, ".jsonl")
    assert np.array_equal(outputs, 2 * rows)
    assert "samples/s" in ran.err


def test_standard_input_is_answered_line_by_line(server):
    """A line's answer comes while standard input is still open, and Ctrl-C then ends it with 130."""
    words = ["predict", "linear", "--url", server.url, "--input", "-"]
    command = [sys.executable, "-m", "unitrain", *words]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for value in (1, 2):
            process.stdin.write(json.dumps({"x": [value] * 3}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["y"] == [2 * value] * 3
        process.send_signal(2)
        assert process.wait(LIMIT_S) == 130
        assert "samples    2 in" in process.stderr.read()


def test_several_inputs_and_outputs_keep_their_shapes(predict, tmp_path):
    """Inputs of two shapes and dtypes go by name, and so do outputs."""
    a, n = np.arange(20, dtype=np.float32).reshape(5, 2, 2), np.arange(5).reshape(5, 1)
    np.savez(tmp_path / "in.npz", a=a, n=n)
    ran = predict("two", "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    assert ran.code == 0, ran.err
    out = np.load(tmp_path / "out.npz")
    assert np.array_equal(out["sum"], a + n[:, :, None])
    assert np.array_equal(out["count"], n)
    ran = predict("two", "--input", tmp_path / "in.npz", "--output", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().splitlines()[:2] == [
        "sum[0],sum[1],sum[2],sum[3],count,version",
        "0.0,1.0,2.0,3.0,0,1",
    ]
    ran = predict("two", "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npy")
    assert ran.code == 2
    assert "--output-name" in ran.err
    predict("two", "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npy", "--output-name", "count")
    assert np.array_equal(np.load(tmp_path / "out.npy"), n)


def test_whole_array_goes_in_and_comes_out_whole(predict, tmp_path):
    """A model without batch axis takes the file's array as one sample."""
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / "in.npy", array)
    ran = predict("whole", "--input", tmp_path / "in.npy", "--output", tmp_path / "out.npz", "--json")
    assert json.loads(ran.out)["samples"] == 1
    assert np.array_equal(np.load(tmp_path / "out.npz")["y"], 2 * array)


def test_count_takes_the_first_and_minus_one_never_ends(predict, tmp_path, rows):
    """`--count 3` of seven rows is three; -1 starts the file again until Ctrl-C, which reports and writes."""
    source = write_rows(tmp_path / "in.npy", rows)
    assert json.loads(predict("linear", "--input", source, "--count", 3, "--json").out)["samples"] == 3
    assert json.loads(predict("linear", "--input", "random", "--count", 50, "--json").out)["samples"] == 50
    target = tmp_path / "out.csv"

    def going():
        wait_until(lambda: target.exists() and target.stat().st_size >= 10_000, "nothing was written")

    ran = predict(
        "linear", "--input", source, "--count", -1, "--output", target, "--json", interrupt_when=going
    )
    assert ran.code == 130
    report = json.loads(ran.out)
    outputs, _ = read_rows(target)
    assert len(outputs) == report["samples"] > 2 * ROWS
    assert np.array_equal(outputs, np.resize(2 * rows, outputs.shape))


def test_failed_samples_keep_their_rows(predict, tmp_path):
    """A NaN, a word and a short line each cost their own row; the exit code is 1 and the first is told."""
    source, target = tmp_path / "in.csv", tmp_path / "out.npz"
    source.write_text("x[0],x[1],x[2]\n1,2,3\n1,nan,3\n1,2\n1,2,word\n4,5,6\n")
    ran = predict("linear", "--input", source, "--output", target, "--json")
    assert ran.code == 1
    assert json.loads(ran.out)["errors"] == {"data": 3}
    assert ran.err.count("\n") == 1
    assert "3 of 5 samples failed, the first: sample 1: input x holds NaN at [1]" in ran.err
    out = np.load(target)
    assert out["version"].tolist() == [1, 0, 0, 0, 1]
    assert np.isnan(out["y"][1:4]).all()
    assert out["y"][4].tolist() == [8, 10, 12]
    ran = predict("linear", "--input", source, "--output", "-")
    assert "in.csv, line 5, column x[2]: expected FP32, got 'word'" in ran.out
    source.write_text("x[0],x[1],x[2]\n1,nan,3\n")
    assert predict("linear", "--input", source, "--allow-nan").code == 0


def test_golden_samples_are_compared(predict, server, tmp_path):
    """The version's own samples answer as published: exit 0; samples that differ: exit 1 and by how much."""
    folder = tmp_path / "linear" / "1"
    folder.mkdir(parents=True)
    x = np.ones((2, 3), np.float32)
    np.savez(folder / "golden.npz", **{"inputs/x": x, "outputs/y": 2 * x})
    words = ("linear", "--input", "golden", "--model-repository", tmp_path)
    ran = predict(*words)
    assert ran.code == 0, ran.err
    assert "golden     as published: 2 rows, largest difference 0.0e+00" in ran.out
    np.savez(folder / "golden.npz", **{"inputs/x": x, "outputs/y": 3 * x})
    ran = predict(*words)
    assert ran.code == 1
    assert f"golden: y[0, 0] is 2.0 in {server.url} and 3.0 in the golden samples" in ran.err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.npy", None, "missing.npy: can't be read: No such file or directory"),
        ("in.npy", b"no array", "in.npy: is no readable .npy file"),
        ("in.npz", b"no archive", "in.npz: is no readable .npz file"),
        ("in.csv", b"", "in.csv: is empty, expected a header line with x[0] … x[2]"),
        (
            "in.csv",
            b"x[0],x[1],x[3]\n",
            "in.csv: there is no column x[2]; expected x[0] … x[2], got x[0], x[1], x[3]",
        ),
        ("in.csv", b"x[0],x[1],x[2],x[3]\n", "column x[3] is beyond the input x: FP32[3]"),
        ("in.csv", b"\xff\xfe\x00", "in.csv: is no CSV file in UTF-8"),
        ("in.jsonl", b'{"z": [1, 2, 3]}\n', "in.jsonl, line 1: there is no x; it holds z"),
        ("in.jsonl", b'{"x": [1, 2, "a"]}\n', "in.jsonl, line 1: input x must be FP32, got BYTES"),
        ("in.jsonl", b"[1, 2\n", "in.jsonl, line 1: is no JSON object"),
        ("in.jsonl", b'{"x": [1, 2]}\n', "sample 0: input x must have the shape [3] or [rows, 3], got [2]"),
        ("in.npy", np.zeros((4, 2), np.float32), "in.npy: input x must have the shape [rows, 3], got [4, 2]"),
        ("in.npy", np.full((1, 3), 0.1), "input x must be FP32, got FP64 with values that would change"),
        ("in.npy", np.array([["a"] * 3]), "in.npy: input x must be FP32, got BYTES"),
        ("in.npy", np.full((1, 3), np.nan, np.float32), "input x holds NaN at [0]; --allow-nan"),
        (
            "in.npz",
            {"X": np.zeros((1, 3))},
            "there is no array x; it holds X, and the model's inputs are x: FP32[3]",
        ),
    ],
)
def test_bad_input_is_one_sentence(predict, tmp_path, name, content, said):
    """Each names the file, what was expected and what was got, with exit 1 and no traceback."""
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        np.save(path, content)
    ran = predict("linear", "--input", path)
    assert ran.code == 1
    assert said in ran.err
    assert [line.startswith("error: ") for line in ran.err.splitlines()] == [True]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ["liner", "--input", "random"],
            1,
            "there is no model liner; the server has counts, linear, lines, mixed, picky, single, two, whole; did you",
        ),
        (["linear", "--input", "random", "--version", 9], 1, "model linear has no version 9 ready; it has 1"),
        (["linear"], 2, "--input is missing"),
        (
            ["linear", "--input", "data.txt"],
            2,
            "--input: expected .csv, .npy, .npz, .jsonl, a folder, a pattern such as 'images/*.png', `-`, `golden` or",
        ),
        (["linear", "--input", "random", "--output", "data.txt"], 2, "--output: expected .csv"),
        (
            ["linear", "--input", "random", "--output", "/no/such/folder/out.csv"],
            1,
            "can't be written: No such file",
        ),
        (["linear", "--input", "random", "--batch-rows", 1000], 2, "takes 1 to 64 rows a request, got 1000"),
        (["linear", "--input", "random", "--batch-rows", 0], 2, "--batch-rows: expected 1 or more"),
        (["linear", "--input", "random", "--timeout", 0], 2, "--timeout: expected seconds above 0"),
        (["linear", "--input", "golden"], 1, "linear/1/golden.npz: can't be read"),
        (
            ["linear", "--input", "random", "--inptu", "x"],
            2,
            "there is no option --inptu; did you mean --input?",
        ),
        (["linear", "--input", "random", "--io.a", "1"], 2, "--io.a needs --io CLASS"),
        (
            ["linear", "--input", "a.csv", "--output", "./a.csv"],
            2,
            "--output would overwrite --input, a.csv",
        ),
        (
            ["linear", "--io", "own.Own", "--input", "random"],
            2,
            "--io and --config replace --input and --output",
        ),
    ],
)
def test_wrong_usage_is_one_sentence(predict, words, code, said):
    """Exit 2 for what was typed wrong, 1 for what the server does not have."""
    ran = predict(*words)
    assert ran.code == code
    assert said in ran.err
    assert ran.err.count("\n") == 1


def test_closed_pipe_is_quiet(server):
    """`| head` ends it without a word."""
    words = f"-m unitrain predict linear --url {server.url} --input random --count -1 --output -"
    with subprocess.Popen(
        [sys.executable, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(LIMIT_S) == 141
        assert process.stderr.read() == ""


def test_full_disk_is_one_sentence(predict, tmp_path):
    """A sink that can't be written ends the run with its name and the cause."""
    target = tmp_path / "full.csv"
    target.symlink_to("/dev/full")
    ran = predict("linear", "--input", "random", "--count", "2000", "--output", target)
    assert ran.code == 1
    assert ran.err == f"error: {target}: can't be written: No space left on device\n"


def test_no_server_is_one_sentence(tmp_path):
    """It names the address and what to do, within seconds."""
    ran = run_predict("linear", "--input", "random", "--url", "127.0.0.1:1")
    assert ran.code == 1
    assert "127.0.0.1:1: no server answers" in ran.err
    assert "unitrain serve" in ran.err
    assert ran.err.count("\n") == 1
    assert run_predict("linear", "--input", "random", "--url", "nonsense").code == 2


def test_predict_never_imports_torch(server):
    """A whole run does without torch and Lightning, and the package without gRPC until it is used."""
    code = (
        "import sys; from unitrain.cli import main; code = main(sys.argv[1:]);"
        "print(sorted({'torch', 'pytorch_lightning'} & set(sys.modules)), code)"
    )
    words = ["predict", "linear", "--input", "random", "--url", server.url]
    out = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    ).stdout
    assert out.splitlines()[-1] == "[] 0"
    code = "import sys, unitrain.client; print({'grpc', 'rich', 'torch', 'jsonargparse'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == "set()\n"
