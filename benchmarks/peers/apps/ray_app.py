"""Ray Serve with one replica, allowed enough requests at once not to back off."""

import signal
import sys

import ray
from ray import serve


@serve.deployment(num_replicas=1, max_ongoing_requests=100)
class Echo:
    async def __call__(self, request):
        return {"output": (await request.json())["input"]}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Echo.bind(), route_prefix="/")
    signal.pause()
