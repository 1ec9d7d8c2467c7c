"""The tree can be guessed: no circles, no two files of one name, no tiny files, no crowded rooms."""

import ast
import re
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import unitrain

PACKAGE = Path(unitrain.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
ROOM_LIMIT = 14
LINES = 60
SMALL = {
    "__main__.py": "Python's own name for `-m`",
    "commands/check.py": "one file a command",
    "commands/doctor.py": "one file a command",
    "commands/export.py": "one file a command",
    "template/datamodules/measurements.py": "a user's own file",
}
"""Files of fewer than 60 lines, with the reason."""
CROWDED = {
    ".": "the public API, and the ground that every room stands on",
    "commands": "one file a command",
}
"""Rooms of more than 14 files, with the reason."""


def imports(file: Path) -> set[str]:
    """Return the modules of unitrain that a file imports, at its top or inside a function."""
    tree = ast.parse((PACKAGE / file).read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing_only:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name.partition(".")[0] == "unitrain"}


def module_name(file: Path) -> str:
    """Return the dotted name of a file."""
    return ".".join(("unitrain", *file.with_suffix("").parts)).removesuffix(".__init__")


def test_no_import_circles() -> None:
    """Files import each other in one direction, inside functions as well."""
    modules = {module_name(file): file for file in FILES if file.name != "__init__.py"}
    graph = {name: imports(file) & modules.keys() - {name} for name, file in modules.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_no_two_files_of_one_name() -> None:
    """But for packages' faces, and commands, which are named as they are typed."""
    free = ("commands", "template", "backends", "models", "datamodules")
    names = Counter(file.name for file in FILES if file.name != "__init__.py" and not {*free} & {*file.parts})
    assert not [name for name, count in names.items() if count > 1]


def test_small_files_have_a_reason() -> None:
    """A file is a concept that is worth opening."""
    small = {
        str(file)
        for file in FILES
        if file.name != "__init__.py" and len((PACKAGE / file).read_text().splitlines()) < LINES
    }
    assert small == {name for name in SMALL if (PACKAGE / name).exists()}


def test_rooms_are_not_crowded() -> None:
    """A folder has about a dozen files, its face not counted."""
    rooms = Counter(str(file.parent) for file in FILES if file.name != "__init__.py")
    assert {room for room, count in rooms.items() if count > ROOM_LIMIT} == set(CROWDED) & rooms.keys()


def test_faces_describe_their_rooms() -> None:
    """Each package's `__init__` states in a sentence what the room is for."""
    for file in FILES:
        if file.name == "__init__.py":
            assert ast.get_docstring(ast.parse((PACKAGE / file).read_text())), file


def test_pages_for_contributors_name_existing_files_and_symbols() -> None:
    """Each `path` is there, and each `path::symbol` is defined in its file; every room is in the table."""
    root = PACKAGE.parent
    pages = {name: (root / name).read_text() for name in ("CONTRIBUTING.md", "docs/architecture.md")}
    named = re.findall(
        r"`((?:unitrain|tests|examples|models|datamodules)/[\w./]*)(?:::(\w+))?`", "".join(pages.values())
    )
    assert named
    for path, symbol in named:
        assert (root / path).exists(), path
        if symbol:
            assert re.search(
                rf"^(?:class|def) {symbol}\b|^{symbol} = ", (root / path).read_text(), re.MULTILINE
            ), symbol
    rooms = {f"unitrain/{file.parent}/" for file in FILES if file.name != "__init__.py" and file.parts[1:]}
    inner = ("unitrain/template/", "unitrain/serving/backends/")
    assert {room for room in rooms if not room.startswith(inner)} <= {path for path, _ in named}


def test_version_is_the_same_in_all_places() -> None:
    """The changelog has a section for it, and the citation names it."""
    root = PACKAGE.parent
    version = unitrain.__version__
    assert f"## [{version}] - " in (root / "CHANGELOG.md").read_text()
    assert f"version: {version}\n" in (root / "CITATION.cff").read_text()


def test_help_of_make_lists_every_target() -> None:
    """A target without a description is not found by anyone."""
    text = (PACKAGE.parent / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):(?! ?=)", text, re.MULTILINE)
    described = re.findall(r"^([a-z-]+):.*## [A-Z]", text, re.MULTILINE)
    assert set(targets) == set(described)
    assert set(targets) == set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
