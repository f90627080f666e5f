"""The State Manager: apps, environments, builds, deployments and what serves now, kept in the server's database."""
