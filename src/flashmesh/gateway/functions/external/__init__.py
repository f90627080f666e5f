"""Functions that are not Python of ours: an HTTP address, or a command that this machine starts."""
