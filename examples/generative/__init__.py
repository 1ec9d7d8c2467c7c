"""Digits generated from codes, and codes found for digits."""
