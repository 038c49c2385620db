"""Data: the only code that knows modalities."""
