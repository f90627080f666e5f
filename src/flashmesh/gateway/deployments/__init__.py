"""Deployments on this server: what is asked for, carried out on the target, written down, and taken up again."""
