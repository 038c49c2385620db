"""The command line. The only package that prints; one file a command or a small group."""

__all__: list[str] = []
