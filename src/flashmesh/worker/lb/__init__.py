"""Declared HTTP routes (load-balanced resources): what makes an application of them, and the workers that serve it.

FastAPI takes half a second to import, so nothing outside this folder imports it, and this folder is imported only where
such routes are served: by the dev server and by workers of load-balanced endpoints.
"""
