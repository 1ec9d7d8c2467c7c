"""Handwritten digits, with calibrated probabilities."""
