"""HTTP on the endpoint's own socket, as one worker serves it."""
