"""The report of the five papers: every table and figure, re-run and decided by a rule."""
