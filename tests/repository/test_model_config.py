"""config.pbtxt says everything that Triton would otherwise guess, and can be read back."""

from pathlib import Path

import pytest
from small_versions import SIGNATURE, config_of

from unitrain.errors import RepositoryError
from unitrain.repository import read_config, signature_of, write_config_text
from unitrain.signature import DTYPES, Signature, TensorSpec


def test_signature_survives_the_text_of_the_configuration(tmp_path: Path) -> None:
    """Names, dtypes, free lengths, single values and the batch axis come back as they went in."""
    path = tmp_path / "config.pbtxt"
    path.write_text(write_config_text(config_of()))
    assert signature_of(read_config(path)) == SIGNATURE


def test_every_dtype_of_the_table_survives() -> None:
    """No dtype that a model may have is lost on the way to Triton."""
    specs = tuple(TensorSpec(name.lower(), name, (3,)) for name in DTYPES)
    signature = Signature(specs, specs, batched=True)
    assert signature_of(config_of(signature)) == signature


def test_configuration_leaves_nothing_to_guess() -> None:
    """Backend, one instance without a kind, one thread, the served versions and batching are written."""
    config = config_of()
    assert config.backend == "onnxruntime"
    assert [(group.count, group.kind) for group in config.instance_group] == [(1, 0)]
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert config.version_policy.latest.num_versions == 2
    assert config.max_batch_size == 64
    assert config.dynamic_batching.max_queue_delay_microseconds == 100


def test_a_model_without_a_batch_axis_is_not_batched() -> None:
    """Triton would add an axis that the graph does not have."""
    config = config_of(Signature(SIGNATURE.inputs, SIGNATURE.outputs, batched=False))
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert signature_of(config).batched is False


def test_a_single_value_a_row_is_reshaped() -> None:
    """Triton refuses empty dims: the tensor has length 1 outside and none inside the graph."""
    label = config_of().output[1]
    assert list(label.dims) == [1]
    assert label.HasField("reshape")
    assert list(label.reshape.shape) == []


@pytest.mark.parametrize("text", ["name: ", "no_such_field: 3", "\x00\xff"])
def test_an_unreadable_configuration_is_named(tmp_path: Path, text: str) -> None:
    """A truncated or foreign file is an error of one line with its path."""
    path = tmp_path / "config.pbtxt"
    path.write_text(text)
    with pytest.raises(RepositoryError, match=r"config\.pbtxt can't be read") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
