"""LightningDataModules, one file a kind of data; settings reach them by class path."""
