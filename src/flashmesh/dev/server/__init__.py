"""The dev server: the process that answers HTTP, and the template it is forked from."""
