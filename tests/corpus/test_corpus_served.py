"""Patterns with shapes and types that need care on the way out, as a real Triton answers them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from triton_server import TritonServer

from corpus import load_all
from corpus.case import CASES
from corpus.judge import LiveAnswers, one_export_process, step_of, train
from unitrain.client import Client

load_all()

PATTERNS = [
    "Squeezed",
    "ArgmaxAndProbabilities",
    "LossAmongOutputs",
    "LabelsInBatch",
    "StringsInBatch",
    "InputNamedCat",
    "IntegerAndBoolOutputs",
    "ByteImages",
    "OptionalMaskInDict",
    "PrivateTemperature",
]
"""Outputs of [row], labels that make a loss, strings in the batch, a name of the exporter's, bytes, masks, state."""


@pytest.mark.slow
def test_the_server_answers_as_the_live_module(tmp_path: Path, triton: TritonServer) -> None:
    """One server for all of them: names, shapes, types and values, for one row and for several."""
    (tmp_path / "pyproject.toml").touch()
    published: dict[str, tuple[int, Any]] = {}
    with one_export_process():
        for name in PATTERNS:
            live = LiveAnswers(CASES[name])
            result = train(CASES[name], tmp_path, live, repository=triton.repository)
            version = result.published[-1]
            published[name] = (version, live.answers[step_of(triton.repository / name, version)])
    with Client(triton.url) as client:
        for name, (version, answers) in published.items():
            triton.wait_for(name, version)
            for size in (1, 17):
                rows = CASES[name].rows(size, seed=size)
                wanted = {spec.name for spec in client.model(name).signature.inputs}
                answer = client.predict(name, **{key: rows[key].numpy() for key in wanted})
                expected = {key: array for key, array in answers[size].items() if array.ndim}
                assert answer.version == version, name
                assert set(answer.outputs) == set(expected), name
                for key, array in expected.items():
                    got = answer.outputs[key]
                    assert (got.shape, got.dtype) == (array.shape, array.dtype), f"{name}: {key}"
                    np.testing.assert_allclose(got, array, rtol=2e-3, atol=2e-4, err_msg=f"{name}: {key}")
