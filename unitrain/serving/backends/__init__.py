"""Backends that the wheel's Triton lacks: one folder each, with Triton's name for the backend."""
