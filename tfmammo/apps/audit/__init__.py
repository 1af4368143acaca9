"""Whether a generator reveals its training patients."""

__all__: list[str] = []
