"""The public API: every name exists, is documented by an example that runs, and is visible to type checkers."""

import ast
import doctest
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
import torch

import unitrain
from unitrain.errors import RunError, UsageError

FUNCTIONS_OF_RUNS = (
    "RunResult",
    "UnitrainError",
    "evaluate",
    "export",
    "fit",
    "load_model",
    "load_run",
    "resume",
)
OTHERS = ("ArrayLoader", "ClientIO", "DatasetLoader", "UnitrainModule")
SERVED = ("Client", "Server")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Names that the examples use: a project's settings file and a run of one epoch; the project is the cwd."""
    root = tmp_path_factory.mktemp("api") / "project"
    shutil.copytree(Path(__file__).parent / "training" / "project", root)
    before = Path.cwd()
    os.chdir(root)
    settings = root / "problem" / "settings.yaml"
    off = {"trainer.max_epochs": 1, "embeddings": None, "summaries": None, "publish.policy": "every"}
    run = unitrain.fit(settings, off, quiet=True).run_dir
    yield {"settings": settings, "run": run}
    os.chdir(before)


def run_examples(name: str, **names: Any) -> None:
    """Run the examples in a public object's docstring; there is one at least."""
    public = getattr(unitrain, name)
    names |= {"np": np, "torch": torch} | {other: getattr(unitrain, other) for other in unitrain.__all__}
    (test,) = (
        t
        for t in doctest.DocTestFinder(recurse=False).find(public, name, module=False, globs=names)
        if t.name == name
    )
    assert test.examples, f"unitrain.{name} has no example"
    printed: list[str] = []
    result = doctest.DocTestRunner().run(test, out=printed.append)
    assert result.failed == 0, "".join(printed)


def test_lists_of_this_file_are_complete() -> None:
    """A new public name needs an example."""
    assert sorted([*FUNCTIONS_OF_RUNS, *OTHERS, *SERVED, "__version__"]) == sorted(unitrain.__all__)


@pytest.mark.parametrize("name", OTHERS)
def test_examples_of_classes_run(name: str) -> None:
    """Modules, loaders and ClientIO, without a run."""
    run_examples(name)


def test_examples_of_runs_run(trained: dict[str, Any]) -> None:
    """Everything that trains or uses a run, on one run; resume is last, since it changes the run."""
    for name in sorted(FUNCTIONS_OF_RUNS, key=lambda name: name == "resume"):
        run_examples(name, **trained)


@pytest.mark.parametrize("name", SERVED)
def test_examples_of_serving_run(name: str, tmp_path: Path, triton_wheel: Path) -> None:
    """A real server answers."""
    repository = tmp_path / "repository"
    onnx_models.publish_model(repository, "linear")
    if name == "Server":
        run_examples(name, repository=repository)
        return
    with unitrain.Server(repository) as server:
        server.wait_for("linear")
        run_examples(name, url=server.url)


def test_all_is_what_type_checkers_see() -> None:
    """The imports for type checkers and `__all__` have the same names, in order and without doubles."""
    tree = ast.parse(Path(unitrain.__file__).read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert unitrain.__all__ == sorted({*typed, "__version__"})
    assert dir(unitrain) == unitrain.__all__


def test_loaded_model_has_the_weights_of_its_kind(trained: dict[str, Any]) -> None:
    """Averaged and raw weights differ; the module computes, and a missing checkpoint is an error."""
    averaged = unitrain.load_model(trained["run"], "ema", checkpoint="last")
    raw = unitrain.load_model(trained["run"], "raw", checkpoint="last")
    content = torch.load(trained["run"] / "checkpoints" / "last.ckpt", weights_only=False)
    for module, key in ((averaged, "state_dict"), (raw, "current_model_state")):
        assert not module.training
        for name, weight in module.state_dict().items():
            assert torch.equal(weight, content[key][name])
    assert any(not torch.equal(a, b) for a, b in zip(averaged.parameters(), raw.parameters(), strict=True))
    with pytest.raises(RunError, match="there is no run"):
        unitrain.load_model("nothing")
    with pytest.raises(UsageError, match="expected `ema` or `raw`, got 'x'"):
        unitrain.load_model(trained["run"], weights="x")
