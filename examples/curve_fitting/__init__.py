"""A curve learned from noisy points."""
