"""Triton itself: where it comes from, and its process."""
