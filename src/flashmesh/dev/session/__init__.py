"""The session of `flash run`: what is scanned, started, watched and printed."""
