"""The name that runpod_flash had before: the same module, so that projects older than the new name run unchanged."""

import sys

import runpod_flash

sys.modules[__name__] = runpod_flash
