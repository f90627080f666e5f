"""BentoML with one worker process."""

import bentoml


@bentoml.service(workers=1)
class Echo:
    @bentoml.api
    def echo(self, input: dict) -> dict:
        return {"output": input}
