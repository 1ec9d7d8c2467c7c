"""Validation batches outside of the validation: first batch, sample inputs, outputs, non-finite values."""

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from unitrain.errors import HookError
from unitrain.loaders import ArrayLoader
from unitrain.module import (
    Tensors,
    UnitrainModule,
    batch_inputs,
    example_inputs,
    flatten_outputs,
    input_names,
)

__all__ = ["first_batch", "isolate_rng", "nonfinite_values", "sample_inputs", "validation_batches"]


def validation_batches(trainer: Trainer, pl_module: LightningModule) -> Iterator[Any]:
    """Yield the batches of the first validation loader on the device; of the training loader without a validation.

    Call it within `isolate_rng`: a loader draws from the global generator when it is iterated.
    """
    for batch in _loader(trainer, pl_module):
        yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))


def first_batch(trainer: Trainer, pl_module: LightningModule) -> Any:
    """Return the first validation batch on the device, without changing the training's random numbers.

    Raises:
        HookError: the loader yields no batch.
    """
    with isolate_rng():
        batch = next(validation_batches(trainer, pl_module), None)
    if batch is None:
        raise HookError("the validation loader yields no batch; check the data module's val_dataloader")
    return batch


def first_batch_of(module: LightningModule, datamodule: LightningDataModule | None) -> Any:
    """Prepare the data, and return the first validation batch of a module outside of a training.

    Raises:
        HookError: the loader yields no batch.
    """
    if datamodule is not None:
        datamodule.prepare_data()
        datamodule.setup("fit")
    with isolate_rng():
        batch = next(iter(_loader_of(module, datamodule)), None)
    if batch is None:
        raise HookError("the validation loader yields no batch; check the data module's val_dataloader")
    return batch


def sample_inputs(module: LightningModule, batch: Any) -> Tensors:
    """Return real inputs by name from a batch, or `example_input_array` if the batch lacks them."""
    try:
        found = batch_inputs(module, batch)
    except HookError:
        if module.example_input_array is None:
            raise
        return example_inputs(module, input_names(module))
    examples = example_inputs(module, tuple(found))
    # A generator's noise differs from the rows of the batch in width alone.
    return examples if any(_is_wider(examples.get(name), value) for name, value in found.items()) else found


def _is_wider(example: Any, value: Any) -> bool:
    pair = (example, value)
    tables = all(isinstance(t, Tensor) and t.dim() == 2 and t.is_floating_point() for t in pair)  # noqa: PLR2004
    return tables and example.shape[1] != value.shape[1]


def _loader(trainer: Trainer, pl_module: LightningModule) -> Any:
    return _loader_of(pl_module, getattr(trainer, "datamodule", None))


def _loader_of(module: LightningModule, datamodule: LightningDataModule | None) -> Any:
    for hook in ("val_dataloader", "train_dataloader"):
        for owner in (datamodule, module):
            if owner is not None and is_overridden(hook, owner):
                loader = getattr(owner, hook)()
                while isinstance(loader, Mapping | list | tuple):
                    loader = next(iter(loader.values() if isinstance(loader, Mapping) else loader), None)
                if loader is not None:
                    return loader
    return ()


def nonfinite_values(batch: Any, trainer: Trainer | None = None) -> str | None:
    """Describe the first NaN or infinity in a batch's inputs and targets; None if all values are finite.

    Args:
        batch: batch of a loader.
        trainer: trainer with the training data in which the rows are searched, if the data are in memory.
    """
    for name, tensor in _named_tensors(batch, "batch"):
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        bad = ~torch.isfinite(tensor)
        if not bad.any():
            continue
        rows = bad.reshape(len(bad), -1).any(1).nonzero()[:, 0].tolist() if bad.dim() else [0]
        what = "NaN" if torch.isnan(tensor).any() else "infinite values"
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        return f"the data have {what}: {name}, sample {rows[0]}{more} of {len(bad) if bad.dim() else 1}{_rows_of(trainer)}"
    return None


def _named_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_tensors(item, f"{name}[{key!r}]")
    elif isinstance(value, tuple | list):
        for index, item in enumerate(value):
            yield from _named_tensors(item, f"{name}[{index}]")


def _rows_of(trainer: Trainer | None) -> str:
    """Describe the rows of the training data that are not finite, if an ArrayLoader has the data in memory."""
    combined = trainer.fit_loop._combined_loader if trainer is not None else None  # noqa: SLF001 - it has no public name
    for loader in combined.flattened if combined is not None else ():
        if not isinstance(loader, ArrayLoader):
            continue
        bad = torch.zeros(loader.n_samples, dtype=torch.bool)
        for column in loader.columns:
            if column.is_floating_point():
                bad |= ~torch.isfinite(column.reshape(len(column), -1)).all(1)
        rows = bad.nonzero()[:, 0].tolist()
        if rows:
            where = getattr(getattr(trainer, "datamodule", None), "place_of", None)
            shown = ", ".join(where(row) if where else f"row {row}" for row in rows[:3])
            more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""  # noqa: PLR2004 - those shown
            return f"; in the training data: {shown}{more}"
    return ""


def observe(module: LightningModule, batch: Any, returned: Any = None) -> tuple[Tensors, Tensors]:
    """Return forward's inputs and outputs of a batch, each by name.

    Args:
        module: module in evaluation mode.
        batch: batch on the module's device.
        returned: value that `validation_step` returned; that of a UnitrainModule has both, which saves a forward.

    Raises:
        HookError: a plain module's forward does not accept the inputs in its batches.
    """
    if isinstance(module, UnitrainModule):
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
    """Put every part of a module into evaluation mode and turn gradients off within a block."""
    # train() on the module would change submodules that the user has frozen.
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
    """Restore the random generators of torch (CPU and device), numpy and Python after a block.

    It takes a tenth of the time of Lightning's `isolate_rng`, since numpy's state is replaced rather than copied.
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
