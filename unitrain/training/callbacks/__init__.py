"""Callbacks of a training, one file each."""
