"""Write records as the archives distribute their files.

Tests, trials and benchmarks then need nobody's data.
"""
