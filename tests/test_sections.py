"""Sections refuse values that can't be meant, in a sentence with the key and the bound."""

import pytest

from unitrain.settings import (
    EarlyStopping,
    Ema,
    Embeddings,
    Publish,
    PublishModelConfig,
    PublishOnnx,
    PublishServer,
    PublishTolerance,
    Summaries,
)


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        (Ema, {"decay": 1.0}, r"ema\.decay must be in \[0, 1\), got 1\.0"),
        (Ema, {"every_n_steps": 0}, r"ema\.every_n_steps must be at least 1, got 0"),
        (EarlyStopping, {"patience": -1}, r"early_stopping\.patience must be at least 0, got -1"),
        (
            Embeddings,
            {"max_points": 100_001},
            r"embeddings\.max_points must be at most 100000, .* got 100001",
        ),
        (Embeddings, {"keep": 0}, r"embeddings\.keep must be at least 1, got 0"),
        (Summaries, {"histograms_every_n_validations": -1}, "must be at least 0, got -1"),
        (Publish, {"keep": 0}, r"publish\.keep must be at least 1, got 0"),
        (PublishServer, {"timeout_s": -1.0}, r"publish\.server\.timeout_s must be at least 0, got -1\.0"),
        (
            PublishModelConfig,
            {"max_batch_size": 0},
            r"publish\.model_config\.max_batch_size must be at least 1, got 0",
        ),
        (PublishOnnx, {"external_data_above_bytes": 2**31}, "must be at most 1800000000, .* got 2147483648"),
        (
            PublishTolerance,
            {"by_dtype": {"INT8": [0, 0]}},
            r"publish\.tolerance\.by_dtype\.INT8: expected .* FP16, FP32, FP64",
        ),
        (
            PublishTolerance,
            {"by_dtype": {"FP32": [1e-3]}},
            r"publish\.tolerance\.by_dtype\.FP32: expected \[absolute, relative\]",
        ),
    ],
)
def test_value_out_of_range_is_refused_by_name(section: type, values: dict, said: str) -> None:
    """Whether from a file, a flag or Python: the section itself says it."""
    section()
    with pytest.raises(ValueError, match=said):
        section(**values)
