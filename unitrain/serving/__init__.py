"""Serving: a Triton server that is installed, started, fed and kept alive here."""
