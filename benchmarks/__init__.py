"""`make bench`: every path that users feel, next to its floor, measured in one run."""
