"""Mammograms -> patches -> splits -> batches. Knows the record, and no archive."""
