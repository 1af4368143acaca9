"""Measures of what the systems put out, against the truth: numbers in, numbers out."""
