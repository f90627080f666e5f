"""The road of scripts and notebooks: a session of their own, found at the first call."""
