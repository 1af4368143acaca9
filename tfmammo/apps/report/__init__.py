"""The report of the five papers: every table and figure, re-run, compared and judged by a rule."""
