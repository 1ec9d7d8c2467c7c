"""What a module made of a batch: taken from its own validation step, or computed where that does not tell."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from pytorch_lightning import LightningModule
from torch import Tensor

from unitrain.errors import HookError
from unitrain.module import ServableModule, Tensors, batch_inputs, flatten_outputs


def observe(module: LightningModule, batch: Any, returned: Any = None) -> tuple[Tensors, Tensors]:
    """(inputs as forward takes them, outputs) of a batch, by name.

    Args:
        module: in evaluation mode, where a forward pass is needed.
        batch: on the module's device.
        returned: by `validation_step`; a ServableModule's own one returns both.

    Raises:
        HookError: a plain module's forward does not take what stands in its batches.
    """
    if isinstance(module, ServableModule):
        if isinstance(returned, Mapping) and {"inputs", "outputs"} <= set(returned):
            return returned["inputs"], returned["outputs"]
        inputs = module.preprocess(batch_inputs(module, batch))
        outputs = module(**inputs)
        return inputs, {"output": outputs} if isinstance(outputs, Tensor) else outputs
    inputs = batch_inputs(module, batch)
    try:
        outputs = module(**inputs)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise HookError(
            f"{type(module).__name__}.forward does not take the batch's {', '.join(inputs)}: {reason}"
        ) from error
    return inputs, flatten_outputs(outputs)


@contextlib.contextmanager
def evaluating(module: LightningModule) -> Iterator[None]:
    """A block without gradients in which every part of the module is in evaluation mode."""
    # eval() and train() on the whole would flip submodules that the person has frozen.
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


_SPARE_BITS = np.random.MT19937(0)


@contextlib.contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """A block whose random draws leave torch's (also the device's), numpy's and Python's generators as they were.

    Lightning's `isolate_rng` in a tenth of its time: numpy's state, which is slow to copy, is not copied.
    """
    devices = [device] if device.type == "cuda" else []
    python, bits = random.getstate(), get_bit_generator()
    with torch.random.fork_rng(devices):
        try:
            set_bit_generator(_SPARE_BITS)
            yield
        finally:
            set_bit_generator(bits)
            random.setstate(python)
