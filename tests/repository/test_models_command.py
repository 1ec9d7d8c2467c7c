"""`models` lists what is published and shows where it came from, in text and in JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_versions import SIGNATURE, config_of
from time_limits import LIMIT_S

from unitrain.cli import main
from unitrain.repository import Repository
from unitrain.repository.manifest import Manifest, Metric

WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["pytorch_lightning"] = None  # importing them fails
from unitrain.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _manifest(version: int) -> Manifest:
    return Manifest(
        model="codes",
        version=version,
        published_at="2026-01-02T03:04:05+00:00",
        run="signals/2026-01-02_03-00-00",
        run_dir="experiments/signals/2026-01-02_03-00-00",
        step=100 * version,
        epoch=version,
        weights="ema",
        signature=SIGNATURE,
        sha256="0" * 64,
        metric=Metric("val_loss", 0.125, "min"),
        parity={"code": {"max_abs": 2e-7, "max_rel": 1e-3}, "label": {"max_abs": 0.0, "max_rel": 0.0}},
    )


@pytest.fixture
def published(repository: Repository) -> Path:
    """Versions 1 and 2 of `codes`, the second without a manifest."""
    for _ in range(2):
        with repository.new_version("codes", config_of()) as staged:
            (staged.path / "model.onnx").write_bytes(bytes(2048))
            if staged.number == 1:
                _manifest(staged.number).write(staged.path)
    return repository.root


def test_models_lists_a_line_a_version(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With run, step, metric and parity where a manifest tells them; a version without one is listed too."""
    assert main(["models", "--model-repository", str(published)]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["model", "version", "when", "run", "step", "metric", "weights", "parity", "size"]
    for shown in ("codes", " 1 ", "signals/2026-01-02_03-00-00", " 100 ", "val_loss 0.125", "2.0e-07", "kB"):
        assert shown in first
    assert second.split()[:2] == ["codes", "2"]
    assert second.endswith("2.0 kB")


def test_models_as_json_can_be_read_by_a_program(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object a version, with its whole manifest."""
    assert main(["models", "--model_repository", str(published), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["model"], first["version"], first["parity"]) == ("codes", 1, 2e-7)
    assert Manifest.from_json(first["manifest"]) == _manifest(1)
    assert second["manifest"] is None


@pytest.mark.parametrize(
    ("extra", "shown"), [([], "there is no version of any model in"), (["--json"], "[]")]
)
def test_an_empty_repository_is_said_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], shown: str
) -> None:
    """And that is no failure; nothing is made."""
    assert main(["models", "--model-repository", str(tmp_path / "none"), *extra]) == 0
    assert capsys.readouterr().out.startswith(shown)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["codes", "1"], ["show", "codes", "1"]])
def test_models_show_tells_a_manifest_plainly(
    published: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """A line a field, dotted names, the signature as people write it."""
    assert main(["models", *words, "--model-repository", str(published)]) == 0
    fields = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert fields["version"] == "1"
    assert fields["run"] == "signals/2026-01-02_03-00-00"
    assert fields["parity.code.max_abs"] == "2e-07"
    assert fields["signature"] == str(SIGNATURE)


def test_models_show_takes_the_newest_and_says_that_it_has_no_manifest(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Serving needs none, so that is no failure."""
    assert main(["models", "codes", "--model-repository", str(published)]) == 0
    shown = capsys.readouterr().out
    assert "version    2" in shown
    assert "no manifest" in shown


def test_a_damaged_manifest_does_not_hide_the_others(
    published: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list goes on and notes it; showing that version fails with its path."""
    (published / "codes" / "1" / "manifest.json").write_text("{")
    assert main(["models", "--model-repository", str(published)]) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 3
    assert "manifest.json can't be read" in told.err
    assert main(["models", "codes", "1", "--model-repository", str(published)]) == 1
    assert "manifest.json can't be read" in capsys.readouterr().err


def test_foreign_entries_are_noted(published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On standard error, since they are no versions."""
    (published / "codes" / "007").mkdir()
    (published / "stray").mkdir()
    assert main(["models", "--model-repository", str(published)]) == 0
    told = capsys.readouterr()
    assert "007" not in told.out
    assert "codes, as no versions or models: 007" in told.err
    assert "as no versions or models: stray" in told.err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["code"], 1, "there is no model code with a version in"),
        (["show", "codes", "7"], 1, "codes has no version 7"),
        (["show"], 2, "expected a model's name, got nothing"),
        (["../codes"], 2, "a model's name has"),
        (["codes", "1", "2"], 2, "expected a name and a version, got codes 1 2"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(
    published: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    """On standard error, with the exit code that tells usage from failure."""
    assert main(["models", *words, "--model-repository", str(published)]) == code
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1


def test_models_needs_no_torch(published: Path) -> None:
    """It works where torch can't be imported."""
    command = [sys.executable, "-c", WITHOUT_TORCH, "models", "--model-repository", published]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert answer.stdout.count("codes") == 2
