"""Multichannel signals compressed to codes that separate their classes."""
