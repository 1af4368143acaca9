"""Whether a generator gives its patients away."""

__all__: list[str] = []
