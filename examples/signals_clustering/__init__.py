"""Multichannel signals compressed to codes in which their classes lie apart."""
