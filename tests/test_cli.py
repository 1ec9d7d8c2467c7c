"""The table of commands, their options, and the exit codes."""

import contextlib
import re
from pathlib import Path

import pytest

from unitrain import __version__
from unitrain.cli import COMMANDS, main

REQUIRED = {"new": ["x"], "predict": ["a_model"], "export": ["--run", "a_run"]}
"""What these commands would otherwise miss first."""


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each."""
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name}" in text for name in COMMANDS)


def test_nothing_asked_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """The help is shown, and the exit code is 2."""
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().out


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the package's."""
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"unitrain {__version__}\n"


def test_mistyped_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, exit code 2."""
    assert main(["tensorbord"]) == 2
    assert capsys.readouterr().err == "error: there is no command `tensorbord`; did you mean `tensorboard`?\n"


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"fit", "check"}))  # theirs may be settings
def test_mistyped_option_is_answered_in_one_sentence(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, no usage text, no traceback."""
    assert main([command, *REQUIRED.get(command, ()), "--jsn"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "--json" in error or "--jsn" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "command", [*(c.split() for c in sorted(set(COMMANDS) - {"fit"})), ["serve", "status"]]
)
def test_help_fits_100_columns_and_spells_options_with_hyphens(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is cut by a terminal of that width."""
    monkeypatch.setenv("COLUMNS", "100")
    with contextlib.suppress(SystemExit):
        main([*command, "--help"])
    text = capsys.readouterr().out
    assert "usage: python -m unitrain " in text
    assert not [line for line in text.splitlines() if len(line) > 100]
    assert not re.findall(r"--[a-z-]+_\w+", text)


@pytest.mark.parametrize("option", ["--experiments-dir", "--experiments_dir"])
def test_options_are_accepted_with_underscores(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both spellings name the same option, with the value after a space or an equals sign."""
    for words in ([option, str(tmp_path)], [f"{option}={tmp_path}"]):
        assert main(["runs", "--json", *words]) == 0
        assert capsys.readouterr().out == "[]\n"
