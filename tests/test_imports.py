"""Imports go one way, and what serves or predicts never brings torch in."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from time_limits import LIMIT_S

import unitrain
from unitrain.cli import COMMANDS

PACKAGE = Path(unitrain.__file__).parent
LAYERS = [
    ["errors", "atomic_files", "untrusted_json", "terminal_output", "import_aliases", "grpc_channel"],
    ["signature", "settings", "settings_renames", "file_lock", "class_paths"],
    ["runs"],
    ["projector", "figures"],
    ["repository"],
    ["serving"],
    ["client"],
    ["doctor"],
    ["module", "loaders"],
    ["onnx_export"],
    ["publish"],
    ["training", "template"],
    ["commands"],
    ["cli"],
    ["__main__", "__init__"],
]
"""A module may import those of earlier lines and of its own package."""
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
NEEDS_TORCH = {"module", "loaders", "onnx_export", "publish", "training", "template"}
FREE_COMMANDS = sorted(set(COMMANDS) - {"fit"})

NO_TORCH = textwrap.dedent(
    """
    import sys

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in ("torch", "pytorch_lightning", "lightning_fabric"):
                raise ImportError(f"{name} must not be imported here")

    sys.meta_path.insert(0, Refuse())
    """
)


def imports_of(path: Path) -> set[str]:
    """The parts of unitrain that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("unitrain."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "unitrain":
            found |= {alias.name for alias in node.names if alias.name in LEVEL}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("unitrain.")}
    return found


FILES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_one_way(file: Path) -> None:
    """A module imports only what stands above it in the list, or beside it in its own package."""
    own = file.parts[0].removesuffix(".py")
    if own == "__init__":
        return  # its names are imported when they are used
    assert own in LEVEL, f"{file} has no place in the list of layers"
    wrong = {name for name in imports_of(PACKAGE / file) if name != own and LEVEL[name] >= LEVEL[own]}
    assert not wrong, f"{file} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_only_the_training_side_names_torch(file: Path) -> None:
    """Above the line no module imports torch or Lightning, not even inside a function."""
    own = file.parts[0].removesuffix(".py")
    if own in NEEDS_TORCH or file == Path("commands/fit.py"):
        return
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    assert not names & {"torch", "pytorch_lightning", "lightning_fabric", "torchmetrics"}


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter where torch can't be imported."""
    command = [sys.executable, "-c", NO_TORCH + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)


@pytest.mark.parametrize("command", FREE_COMMANDS)
def test_command_explains_itself_without_torch(command: str) -> None:
    """`--help` works where torch can't be imported, and names the command."""
    done = run("from unitrain.cli import main; sys.exit(main(sys.argv[1:]))", command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m unitrain {command}" in done.stdout


def test_client_and_serving_can_be_imported_without_torch() -> None:
    """Also what they import only when they are used: every module of theirs."""
    parts = ("runs", "projector", "repository", "serving", "client")
    names = [
        "unitrain." + ".".join(f.with_suffix("").parts).removesuffix(".__init__")
        for f in FILES
        if f.parts[0] in parts and "backends" not in f.parts
    ]
    done = run(f"import importlib\nfor name in {names!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_importing_unitrain_imports_next_to_nothing() -> None:
    """Neither numpy nor anything else that is not of Python's own."""
    code = "import unitrain\nfor n in ('numpy', 'yaml', 'google', 'tritonclient', 'rich'): assert n not in sys.modules, n"
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_public_names_are_those_of_all() -> None:
    """Everything in `__all__` can be imported, and `dir` lists it."""
    assert dir(unitrain) == unitrain.__all__
    for name in unitrain.__all__:
        assert getattr(unitrain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = unitrain.nothing


def test_former_name_of_the_module_class_still_works() -> None:
    """It is the same class, with a warning that names the new one."""
    with pytest.warns(DeprecationWarning, match="now unitrain.UnitrainModule"):
        assert unitrain.ServableModule is unitrain.UnitrainModule
