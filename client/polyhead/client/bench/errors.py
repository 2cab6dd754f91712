"""What makes a benchmark impossible before it has begun."""


class BenchError(Exception):
    """Flags, a file or a model that do not go together; the text is one line that says what to change."""
