"""The process that owns the endpoints' sockets, and its client in the session."""
