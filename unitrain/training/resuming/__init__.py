"""Exact continuation of an interrupted training."""
