"""Calls that user code in a worker makes: to itself, to peers, over HTTP, for later."""
