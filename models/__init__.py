"""LightningModules and layers, one file per model; settings name them as `unitrain.models.unet.UNet`."""

from unitrain.import_aliases import share_package

share_package(__name__, __file__)
