"""Every pattern of the corpus is served as the live module answers, or refused before the first epoch.

The judge that says so is tested, too: it can fail.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from slow_cases import slow_after, slow_except

from corpus import load_all
from corpus.case import CASES, Case, Small, pair, total
from corpus.judge import LiveAnswers, compare_version, in_child, judge, one_export_process, step_of, train
from unitrain.errors import PublishRefused, UsageError
from unitrain.publish import Publisher

load_all()

SEEN = [
    "ActivationIsReplaced", "BatchNormByFunction", "BranchOnBatchSize", "CurrentEpoch", "HoldsALock", "HyperParameterChanges",
    "InputNamedCat", "LabelsInBatch", "LazyLayers", "NonLeafTensor", "OldWeightNorm", "PlainTensorInFitStart",
    "PruningCallback", "QuantizationAware", "RareNeighbour", "SparseAdjacencyBuffer", "SqueezedFully", "StarArguments",
    "SubtractsTheBatchMean",
]  # fmt: skip
"""The kinds that were seen to fail in the field.

Of the others one in twenty-four is tested; `benchmarks/module_corpus.py` runs all.
"""
QUICK = [
    "BatchNormByFunction",
    "HyperParameterChanges",
    "LabelsInBatch",
    "OldWeightNorm",
    "SubtractsTheBatchMean",
]
"""Kinds that `make test` trains."""
CHOSEN = [*SEEN, *[name for name in CASES if name not in SEEN][::24]]


@pytest.fixture(scope="module", autouse=True)
def _exporting() -> Iterator[None]:
    with one_export_process():
        yield


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working folder that is a project's root."""
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


@pytest.mark.parametrize("name", slow_except(QUICK, CHOSEN))
def test_pattern_is_served_as_it_answers_or_refused_before_the_first_epoch(name: str, project: Path) -> None:
    """The verdict is one that the pattern declares."""
    verdict = judge(CASES[name], project)
    assert verdict.as_declared(CASES[name].must), f"{verdict.kind}: {verdict.detail}"


def _case(module: type = Small, **changes: Any) -> Case:
    plain = Case(
        "Judged",
        module,
        CASES["PrivateTemperature"].inputs,
        "equal",
        pair,
        total,
        torch.utils.data.default_collate,
    )
    return dataclasses.replace(plain, **changes)


@pytest.mark.slow
def test_the_judge_notices_weights_that_are_not_the_live_ones(project: Path) -> None:
    """One weight of a good version's graph is changed by a hundredth."""
    case = CASES["BareLightningModule"]
    live = LiveAnswers(case)
    result = train(case, project, live)
    model_dir, version = project / "triton_repo" / case.name, result.published[-1]
    answers = live.answers[step_of(model_dir, version)]
    assert compare_version(case, model_dir, version, answers) is None
    path = model_dir / str(version) / "model.onnx"
    graph = onnx.load(path)
    weight = next(i for i in graph.graph.initializer if i.name.endswith("b.bias"))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.01), weight.name))
    onnx.save(graph, path)
    wrong = compare_version(case, model_dir, version, answers)
    assert wrong is not None
    assert wrong.startswith("1 rows: output is off by 0.01 ")
    assert compare_version(case, model_dir, version, None) is not None


@pytest.mark.parametrize(
    ("call", "expected"),
    slow_after(
        2,
        [
            (lambda module, inputs: module(**inputs) + 0.01, "1 rows: output is off by 0.01 "),
            (
                lambda module, inputs: module(**inputs) * (1 + (len(inputs["x"]) > 40)),
                "64 rows: output is off by ",
            ),
            (
                lambda module, inputs: module(**inputs) * (1 + (len(inputs["x"]) == 3)),
                "3 rows: output is off by ",
            ),
            (
                lambda module, inputs: module(**inputs)[:, 0],
                "output is float32 of the shape (1, 1), the live module's float32 of (1,)",
            ),
            (lambda module, inputs: {"other": module(**inputs)}, "outputs are ['output']"),
            (
                lambda module, inputs: module(**inputs).double(),
                "output is float32 of the shape (1, 1), the live module's float64 of (1, 1)",
            ),
            (lambda module, inputs: module(**inputs) + torch.rand(()), "output is off by "),
        ],
    ),
)
def test_the_judge_notices_a_module_that_answers_otherwise(project: Path, call: Any, expected: str) -> None:
    """The live module is queried by a call that the published graph knows nothing of."""
    verdict = judge(dataclasses.replace(CASES["BareLightningModule"], call=call), project)
    assert verdict.kind == "WRONG"
    assert expected in verdict.detail


@pytest.mark.slow
def test_the_judge_notices_rows_that_depend_on_their_neighbours(project: Path) -> None:
    """Differences that each size by itself does not show: the served graph takes the batch's mean away."""
    case = CASES["BareLightningModule"]
    live = LiveAnswers(case)
    result = train(case, project, live)
    model_dir, version = project / "triton_repo" / case.name, result.published[-1]
    path = model_dir / str(version) / "model.onnx"
    graph = onnx.load(path)
    last = graph.graph.output[0].name
    for node in graph.graph.node:
        node.output[:] = [f"{name}_raw" if name == last else name for name in node.output]
    axes = numpy_helper.from_array(np.array([0]), "axes")
    graph.graph.initializer.append(axes)
    graph.graph.node.extend([
        onnx.helper.make_node("ReduceMean", [f"{last}_raw", "axes"], ["batch_mean"]),
        onnx.helper.make_node("Sub", [f"{last}_raw", "batch_mean"], [last]),
    ])  # fmt: skip
    onnx.save(graph, path)
    answers = live.answers[step_of(model_dir, version)]
    centred = {
        size: {n: a - a.mean(0, keepdims=True) for n, a in arrays.items()} for size, arrays in answers.items()
    }
    wrong = compare_version(case, model_dir, version, centred)
    assert wrong is not None
    assert "among 16 others" in wrong


@pytest.mark.slow
def test_the_judge_tells_refusals_crashes_and_late_refusals_apart(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time of the error and by its class."""
    case = CASES["BareLightningModule"]

    def fails(error: Exception) -> Any:
        def call(*_: Any, **__: Any) -> None:
            raise error

        return call

    with monkeypatch.context() as patched:
        patched.setattr(case.module, "training_step", fails(UsageError("one sentence; do this")))
        assert judge(case, project).kind == "refused"
        patched.setattr(case.module, "training_step", fails(RuntimeError("no")))
        assert judge(case, project).kind == "crashed"
    with monkeypatch.context() as patched:
        patched.setattr(case.module, "on_train_epoch_end", fails(UsageError("one sentence; do this")))
        assert judge(case, project).kind == "refused late"
    with monkeypatch.context() as patched:
        patched.setattr(Publisher, "publish", fails(PublishRefused("parity", "no; do this")))
        verdict = judge(case, project)
    assert (verdict.kind, verdict.detail) == ("refused late", "no; do this")


def test_the_live_module_is_left_as_it_was() -> None:
    """What a forward changes is changed in a child process alone; a failure there is a text."""
    state = {"calls": 0}

    def ask() -> int:
        state["calls"] += 1
        return state["calls"]

    assert (in_child(ask), in_child(ask), state["calls"]) == (1, 1, 0)
    assert in_child(lambda: 1 / 0) == "ZeroDivisionError: division by zero"
