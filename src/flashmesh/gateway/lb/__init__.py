"""Load-balanced endpoints behind the server's own port, `/lb/{endpoint}/…` and `{endpoint}.localhost`."""
