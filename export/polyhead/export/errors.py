"""What can go wrong in an export; the text is one line for the person who asked for it."""


class ExportError(Exception):
    """A model that can't be exported, or a place it can't be written to."""


class ParityError(ExportError):
    """torch and the exported graph disagree. The text names the tensors that do."""
