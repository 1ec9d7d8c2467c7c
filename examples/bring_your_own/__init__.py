"""A plain LightningModule and LightningDataModule, served without a line that knows of it."""
