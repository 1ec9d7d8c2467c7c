"""The config.pbtxt that the settings and the module ask for, with label files for classifiers."""

import re
from collections.abc import Mapping, Sequence

from pytorch_lightning import LightningModule
from torch import Tensor

from unitrain.errors import HookError, SettingsError
from unitrain.repository import ModelConfig, changed_config, model_config, signature_of
from unitrain.settings import Publish
from unitrain.signature import Signature

ClassNames = Mapping[str, Sequence[str]] | Sequence[str] | None


def class_names_of(module: LightningModule) -> ClassNames:
    """A classifier's class names: the module's attribute or hyper-parameter `class_names`.

    A list is for the one output that is as wide, if there is one; a mapping from outputs to lists says for which.
    """
    names = getattr(module, "class_names", None)
    if names is None:
        names = module.hparams.get("class_names")
    if callable(names):
        names = names()
    return names


def check_dynamic_axes(settings: Publish, sample: Mapping[str, Tensor]) -> None:
    """Compare `publish.onnx.dynamic_axes` with the inputs that there are.

    Args:
        settings: the section.
        sample: the inputs by name, [row, ...] each.

    Raises:
        SettingsError: there is no such input, or no such axis.
    """
    for name, axes in settings.onnx.dynamic_axes.items():
        if name not in sample:
            raise SettingsError(
                f"publish.onnx.dynamic_axes: there is no input {name}; the inputs are {', '.join(sample)}"
            )
        shape = list(sample[name].shape)
        for axis in axes:
            if axis >= len(shape):
                valid = ", ".join(map(str, range(1, len(shape)))) or "none beside the batch"
                raise SettingsError(
                    f"publish.onnx.dynamic_axes.{name}: there is no axis {axis} in an input of shape {shape}; its axes are {valid}"
                )


def served_config(
    model: str, signature: Signature, settings: Publish, class_names: ClassNames = None
) -> tuple[ModelConfig, dict[str, str]]:
    """The message of config.pbtxt, and the label files that it names, as text by file name.

    Raises:
        SettingsError: `publish.model_config.overrides` has a field that Triton's message lacks, or changes what the graph is.
        HookError: the class names fit no output.
    """
    config = model_config(
        model,
        signature,
        max_batch_size=settings.model_config.max_batch_size,
        num_versions=settings.model_config.num_versions,
        max_queue_delay_microseconds=settings.model_config.max_queue_delay_microseconds,
        warm_up=settings.model_config.model_warmup,
    )
    labels = {}
    for output, names in _by_output(class_names, signature).items():
        file_name = f"labels_{re.sub(r'[^A-Za-z0-9_-]', '_', output)}.txt"
        labels[file_name] = "".join(f"{' '.join(str(name).split())}\n" for name in names)
        for tensor in config.output:
            if tensor.name == output:
                tensor.label_filename = file_name
    try:
        config = changed_config(config, settings.model_config.overrides)
    except ValueError as error:
        raise SettingsError(f"publish.model_config.overrides: {error}") from error
    if config.name != model:
        raise SettingsError(
            f"publish.model_config.overrides.name: the name is {model}; change it by publish.model"
        )
    if signature_of(config) != signature:
        raise SettingsError(
            f"publish.model_config.overrides: with it the inputs and outputs are {signature_of(config)}, but the graph has "
            f"{signature}; leave name, data type and shape as they are"
        )
    return config, labels


def _by_output(class_names: ClassNames, signature: Signature) -> dict[str, list[str]]:
    if not class_names:
        return {}
    widths = {spec.name: spec.dims[-1] for spec in signature.outputs if spec.dims}
    if isinstance(class_names, Mapping):
        for output, names in class_names.items():
            if widths.get(output) != len(names):
                raise HookError(
                    f"class_names: {output} is given {len(names)} names, but the outputs end in "
                    f"{', '.join(f'{name}: {width}' for name, width in widths.items())} values"
                )
        return {str(output): list(names) for output, names in class_names.items()}
    # A model may know class names and serve no classes: an autoencoder that labels its embeddings, say.
    fitting = [spec.name for spec in signature.outputs if spec.dims == (len(class_names),)]
    if len(fitting) > 1:
        raise HookError(
            f"class_names: {', '.join(fitting)} have {len(class_names)} values each; say which of them the names are "
            "of by a mapping from the output to the names"
        )
    return {name: list(class_names) for name in fitting}
