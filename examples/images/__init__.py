"""Handwritten digits, with probabilities that mean what they say."""
