"""Records -> files as the archives distribute them: for tests, trials and benchmarks
without anybody's data.
"""
