"""The READMEs: each one's commands are typed by a test, and what they link to is there."""

import re
from pathlib import Path

import pytest
from commands import ROOT
from terminal import Terminal, sh_blocks

READMES = [ROOT / "README.md", *sorted((ROOT / "examples").glob("*/README.md"))]


@pytest.mark.slow
def test_commands_of_the_readme_run_as_they_stand(terminal: Terminal) -> None:
    """Each ends well, one after the other, as a person would type them on a fresh clone; later ones name versions."""
    terminal.read(ROOT / "README.md", "")


@pytest.mark.parametrize("readme", READMES[1:], ids=lambda path: path.parent.name)
def test_commands_of_an_example_s_readme_are_typed_by_its_own_test(readme: Path) -> None:
    """Which looks at what they print and leave, too."""
    tests = [path.read_text() for path in Path(__file__).parent.glob("test_*.py")]
    assert any("terminal.read(" in text and f'"{readme.parent.name}"' in text for text in tests)


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_files_that_a_readme_links_to_are_there(readme: Path) -> None:
    """Pictures and pages beside it."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)", readme.read_text())
    assert not [link for link in links if not (readme.parent / link).exists()]


def test_commands_of_a_block_are_found() -> None:
    """Continued lines are one command, comments none; blocks of other languages are passed over."""
    text = "```sh\na b \\\n    c   # why\n# nothing\nd && e\n```\n```python\nx\n```\n"
    assert sh_blocks(text) == [["a b c", "d", "e"]]
