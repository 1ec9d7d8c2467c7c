"""config.pbtxt is Triton's whole message: any field can be set, wrong ones are refused."""

from typing import Any

import pytest
from pytorch_lightning import LightningModule

from unitrain.errors import HookError, SettingsError
from unitrain.publish.triton_config import class_names_of, served_config
from unitrain.settings import Publish, PublishModelConfig
from unitrain.signature import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 3)), TensorSpec("flag", "BOOL", ())),
    (TensorSpec("scores", "FP32", (2,)), TensorSpec("code", "FP32", (5,))),
    batched=True,
)


def config_with(**changes: Any) -> Any:
    settings = PublishModelConfig(overrides=changes, max_queue_delay_microseconds=250)
    return served_config("m", SIGNATURE, Publish(model_config=settings))[0]


def test_fields_of_the_settings_take_the_place_of_ours() -> None:
    """Whole fields are replaced, parameters and batching are added to, null takes a field away."""
    config = config_with(
        instance_group=[{"count": 2, "kind": "KIND_CPU"}],
        parameters={"intra_op_thread_count": 4, "session.use_env_allocators": True},
        dynamic_batching={"preferred_batch_size": [8, 16]},
    )
    assert [(group.count, group.kind) for group in config.instance_group] == [(2, 2)]
    assert {name: p.string_value for name, p in config.parameters.items()} == {
        "intra_op_thread_count": "4",
        "session.use_env_allocators": "true",
    }
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    assert not config_with(dynamic_batching=None).HasField("dynamic_batching")
    assert config_with(sequence_batching={}).WhichOneof("scheduling_choice") == "sequence_batching"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_batchsize": 3}, "no field max_batchsize; did you mean max_batch_size"),
        (
            {"instance_group": [{"cout": 1}]},
            "no field instance_group.cout; did you mean instance_group.count",
        ),
        (
            {"parameters": {"a": {"string_valu": 1}}},
            "no field parameters.a.string_valu; did you mean parameters.a.string_value",
        ),
        ({"max_batch_size": "many"}, "many"),
        ({"name": "other"}, r"change it by publish\.model"),
        ({"max_batch_size": 0}, "but the graph has"),
        ({"output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": [9]}]}, "but the graph has"),
    ],
)
def test_a_wrong_field_is_refused_with_the_nearest(changes: dict[str, Any], words: str) -> None:
    """Against Triton's own message; what the graph is can't be changed by a setting."""
    with pytest.raises(SettingsError, match=rf"publish\.model_config\.overrides.*{words}") as caught:
        config_with(**changes)
    assert "\n" not in str(caught.value)


def test_warm_up_asks_once_with_zeros() -> None:
    """Open lengths are 1, a single value a row has length 1."""
    config, _ = served_config("m", SIGNATURE, Publish(model_config=PublishModelConfig(model_warmup=True)))
    [request] = config.model_warmup
    assert request.batch_size == 1
    assert {name: list(i.dims) for name, i in request.inputs.items()} == {"x": [1, 3], "flag": [1]}
    assert all(i.zero_data for i in request.inputs.values())


@pytest.mark.parametrize("names", [["cat", "dog"], {"scores": ["cat", "dog"]}])
def test_class_names_become_a_label_file(names: Any) -> None:
    """Of the output that is as wide, or of the one that is named."""
    config, labels = served_config("m", SIGNATURE, Publish(), names)
    assert labels == {"labels_scores.txt": "cat\ndog\n"}
    assert [tensor.label_filename for tensor in config.output] == ["labels_scores.txt", ""]


@pytest.mark.parametrize("names", [{"scores": ["a", "b", "c"]}, {"no_such": ["a"]}])
def test_class_names_that_fit_no_output_are_refused(names: Any) -> None:
    """The widths there are, are told."""
    with pytest.raises(HookError, match="class_names: "):
        served_config("m", SIGNATURE, Publish(), names)


def test_class_names_of_a_model_that_serves_no_classes_are_passed_over() -> None:
    """An autoencoder may know them to label its embeddings."""
    config, labels = served_config("m", SIGNATURE, Publish(), ["a", "b", "c", "d"])
    assert labels == {}
    assert {tensor.label_filename for tensor in config.output} == {""}


def test_class_names_come_from_an_attribute_or_a_hyper_parameter() -> None:
    """Either is enough."""

    class ByAttribute(LightningModule):
        class_names = ("a", "b")

    class ByHyperParameter(LightningModule):
        def __init__(self, class_names):
            super().__init__()
            self.save_hyperparameters()

    assert class_names_of(ByAttribute()) == ("a", "b")
    assert class_names_of(ByHyperParameter(["c", "d"])) == ["c", "d"]
    assert class_names_of(LightningModule()) is None
