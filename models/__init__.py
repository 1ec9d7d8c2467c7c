"""LightningModules, one file a model; settings reach them by class path."""
