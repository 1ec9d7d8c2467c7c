"""Odd names, closed streams and full devices end in one sentence with the right exit code."""

import subprocess
import sys
from pathlib import Path

import pytest
from time_limits import LIMIT_S

from unitrain.cli import main

ODD = (
    "",
    " ",
    "../..",
    "/nonexistent/x",
    "ä ö",
    "x" * 300,
    "x" * 5000,
    "a\nb",
    "\x1b[31m",
    "\udcff",
    "/dev/null",
    "%s{}",
)
COMMANDS = (
    ("models", "show", "ODD"),
    ("models", "--model-repository", "ODD"),
    ("models", "verify", "ODD"),
    ("models", "rollback", "ODD", "1"),
    ("models", "--url", "ODD"),
    ("runs", "show", "ODD"),
    ("runs", "compare", "ODD", "ODD"),
    ("runs", "--experiment", "ODD"),
    ("runs", "--experiments_dir", "ODD"),
    ("new", "ODD"),
    ("serve", "status", "--url", "ODD"),
    ("tensorboard", "no-such-run", "--experiments_dir", "ODD"),
    ("predict", "ODD", "--url", "127.0.0.1:1", "--input", "random", "--count", "1"),
    ("predict", "m", "--url", "127.0.0.1:1", "--input", "ODD"),
    ("predict", "m", "--url", "127.0.0.1:1", "--input", "random", "--output", "ODD"),
    ("predict", "m", "--url", "ODD", "--input", "random"),
    ("predict", "m", "--url", "127.0.0.1:1", "--config", "ODD"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_odd_name_is_one_sentence_at_most(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Whatever it stands for: no traceback, nothing unexpected, nothing raw on the terminal."""
    monkeypatch.chdir(tmp_path)
    for odd in ODD:
        code = main([odd if word == "ODD" else word for word in command])
        out, error = capfd.readouterr()
        assert code in (0, 1, 2), (odd, error)
        assert (code == 0) == ("error: " not in error), (odd, error)
        assert "unexpected" not in error, (odd, error)
        assert "Traceback" not in error + out
        assert (error + out).replace("\n", "").isprintable(), (odd, error)


@pytest.mark.parametrize("odd", ["", "nope", "a/b", "../..", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_wrong_usage(odd: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, before anything is tried."""
    assert main(["serve", "status", "--url", odd]) == 2
    assert capfd.readouterr().err.startswith("error: url: expected `host:port`")


@pytest.mark.parametrize("odd", ["", "..", "../..", "a/b"])
def test_an_experiment_is_a_folder_s_name(odd: str, capfd: pytest.CaptureFixture[str]) -> None:
    """`runs --experiment` lists none from elsewhere."""
    assert main(["runs", "--experiment", odd]) == 2
    assert capfd.readouterr().err.startswith("error: experiment: expected a folder's name")


@pytest.mark.parametrize(
    ("streams", "code", "error"),
    [
        ("| head -c 1 >/dev/null", 141, ""),
        (
            ">/dev/full",
            1,
            "error: the disk is full: No space left on device; free some space and try again\n",
        ),
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
    ],
)
def test_streams_that_take_nothing(streams: str, code: int, error: str, tmp_path: Path) -> None:
    """A reader that has gone, a full device, closed streams; nothing is printed as the interpreter ends."""
    experiments_dir = tmp_path / "experiments"
    for i in range(3):
        (experiments_dir / "a" / f"run{i}").mkdir(parents=True)
        (experiments_dir / "a" / f"run{i}" / "run.json").write_text(
            '{"status": "finished", "x": "%s"}' % ("y" * 10**5)
        )
    command = f"'{sys.executable}' -m unitrain runs --json --experiments_dir '{experiments_dir}' {streams}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=LIMIT_S
    )
    assert (done.returncode, done.stderr) == (code, error)


def test_a_closed_standard_output_does_not_become_a_file(tmp_path: Path) -> None:
    """What `new` prints is not written into the files that it makes."""
    command = f"cd '{tmp_path}' && '{sys.executable}' -m unitrain new project >&-"
    assert subprocess.run(["bash", "-c", command], check=False, timeout=LIMIT_S).returncode == 0
    assert not [
        p for p in (tmp_path / "project").rglob("*") if p.is_file() and "to train it" in p.read_text()
    ]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_can_be_read_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    """Letters that the terminal lacks are escaped as JSON has it."""
    run_dir = tmp_path / "ex ö" / "run ☃"
    run_dir.mkdir(parents=True)
    (run_dir / "run.json").write_text('{"status": "finished", "reason": "\\ud800 ☃"}', encoding="utf-8")
    code = (
        f"import io, json, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding={encoding!r})\n"
        f"from unitrain.cli import main\nsys.exit(main(['runs', '--json', '--experiments_dir', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    import json

    assert json.loads(done.stdout.decode(encoding))[0]["name"] == "run ☃"


@pytest.mark.parametrize(
    "words", [["models", "--model-repository", ""], ["export", "--run", "last", "--model-repository="]]
)
def test_an_empty_path_is_wrong_usage(words, capsys):
    """A variable of the shell that is not set must not mean the working folder."""
    assert main(words) == 2
    assert "it is empty; give a path" in capsys.readouterr().err
