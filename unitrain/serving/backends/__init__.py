"""Backends that Triton lacks when it comes from the wheel, a folder each, as Triton names them."""
