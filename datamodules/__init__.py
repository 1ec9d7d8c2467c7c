"""LightningDataModules for common kinds of files; settings name them as `unitrain.datamodules.tabular.CsvTable`."""

from unitrain.import_aliases import share_package

share_package(__name__, __file__)
