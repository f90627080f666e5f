"""The same echo job on what else a user could pick, each in an environment of its own that is thrown away."""
