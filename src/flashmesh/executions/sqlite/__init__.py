"""Executions in a SQLite database that outlives the process: what `flash server` uses."""
