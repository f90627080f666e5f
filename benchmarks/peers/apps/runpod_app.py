"""The runpod SDK's own local server."""

import runpod


def handler(job):
    return job["input"]


runpod.serverless.start({"handler": handler})
