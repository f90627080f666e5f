"""Flash's folder of resource classes."""
