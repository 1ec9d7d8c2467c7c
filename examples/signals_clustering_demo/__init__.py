"""`make demo`, which trains and serves `examples/signals_clustering`, and the script of the pretrained model."""
