"""What tells the validation data of one run from another's."""

import numpy as np
import torch

from unitrain.training.batches import fingerprint


def test_fingerprint_is_of_values_dtypes_and_shapes() -> None:
    """Equal batches have equal ones, however their tensors lie in memory; another value, type or shape another."""
    batch = {"x": torch.arange(6.0).reshape(3, 2), "n": 3}
    turned = {"x": torch.arange(6.0).reshape(3, 2).T.contiguous().T, "n": 3}
    assert fingerprint(batch) == fingerprint(turned)
    others = [batch["x"] + 1, batch["x"].double(), batch["x"].reshape(2, 3)]
    assert len({fingerprint({"x": x, "n": 3}) for x in others} | {fingerprint(batch)}) == 4


def test_fingerprint_takes_a_column_that_numpy_made_of_a_row() -> None:
    """Such a column of one value a row has a step of 0 bytes, which torch can't look at as bytes."""
    column = torch.as_tensor(np.arange(5)[:, None])
    assert column.stride() == (1, 0)
    assert fingerprint(column) == fingerprint(torch.arange(5).reshape(5, 1))
    assert fingerprint(torch.tensor(2.0)) != fingerprint(torch.tensor(3.0))
