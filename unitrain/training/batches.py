"""Validation batches for those who need some beside the validation itself."""

from collections.abc import Iterator, Mapping
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.utilities.model_helpers import is_overridden
from pytorch_lightning.utilities.seed import isolate_rng

from unitrain.errors import HookError
from unitrain.module import Tensors, batch_inputs, example_inputs, input_names

__all__ = ["first_batch", "isolate_rng", "sample_inputs", "validation_batches"]


def validation_batches(trainer: Trainer, pl_module: LightningModule) -> Iterator[Any]:
    """Batches of the first validation loader (of the training one, where there is none), on the device.

    The caller holds `isolate_rng`: a loader draws from the global generator when it is iterated.
    """
    for batch in _loader(trainer, pl_module):
        yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))


def first_batch(trainer: Trainer, pl_module: LightningModule) -> Any:
    """The first validation batch, on the device; the random numbers of the training stay as they were."""
    with isolate_rng():
        batch = next(validation_batches(trainer, pl_module), None)
    if batch is None:
        raise HookError("the validation loader gives no batch; check the data module's val_dataloader")
    return batch


def first_batch_of(module: LightningModule, datamodule: LightningDataModule | None) -> Any:
    """The first validation batch of a module outside of any training, once its data is there.

    Raises:
        HookError: there is none.
    """
    if datamodule is not None:
        datamodule.prepare_data()
        datamodule.setup("fit")
    with isolate_rng():
        batch = next(iter(_loader_of(module, datamodule)), None)
    if batch is None:
        raise HookError("the validation loader gives no batch; check the data module's val_dataloader")
    return batch


def sample_inputs(module: LightningModule, batch: Any) -> Tensors:
    """Real inputs by name from a batch, or `example_input_array` where the batch does not hold them."""
    try:
        return batch_inputs(module, batch)
    except HookError:
        if module.example_input_array is None:
            raise
        return example_inputs(module, input_names(module))


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
