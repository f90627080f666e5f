"""A State Manager over real HTTP that does what a test says: answers, fails, is slow, talks nonsense, or is gone."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Mood = Literal["answers", "500", "403", "garbage", "no object", "error", "mute", "redirect", "half"]


class StateManager:
    """Knows one environment, `env-1`, with one build. `queries` counts whole ones: an environment's build was read."""

    def __init__(self, manifest: Mapping[str, Any] | None = None) -> None:
        self.manifest: Mapping[str, Any] = manifest or {"function_registry": {}, "resources": {}}
        self.endpoints: list[dict[str, str]] = []
        self.mood: Mood = "answers"
        self.fails_first = 0
        self.requests: list[dict[str, str]] = []
        self.queries = 0
        self.variables: Mapping[str, str] = {}
        self.holding: threading.Event | None = None
        """Answers wait for it."""
        self.arrived = threading.Semaphore(0)
        self.over = threading.Event()
        state = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                state.requests.append({name.lower(): value for name, value in self.headers.items()})
                state.arrived.release()
                if state.holding is not None:
                    state.holding.wait(20)
                self.close_connection = True
                mood: Mood = state.mood
                if state.fails_first:
                    state.fails_first -= 1
                    mood = "500"
                if mood == "mute":
                    state.over.wait(20)
                elif mood == "500":
                    self._say(500, b"out of order")
                elif mood == "403":
                    self._say(403, b"{}")
                elif mood == "garbage":
                    self._say(200, b"<html>hello</html>")
                elif mood == "no object":
                    self._say(200, b"[1, 2]")
                elif mood == "error":
                    self._say(200, json.dumps({"errors": [{"message": "no such environment"}], "data": None}).encode())
                elif mood == "redirect":
                    self._say(302, b"", Location="http://127.0.0.1:9/")
                elif mood == "half":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
                else:
                    self._say(200, json.dumps({"data": state.answer(body)}).encode())

            def _say(self, status: int, body: bytes, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/graphql"

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        variables = self.variables = body["variables"]
        if "flashEnvironment(" in body["query"]:
            if variables != {"flashEnvironmentId": "env-1"}:
                return {"flashEnvironment": None}
            environment = {"id": "env-1", "name": "production", "activeBuildId": "b1", "endpoints": self.endpoints}
            return {"flashEnvironment": environment}
        assert variables in ({"flashBuildId": "b1"}, {"flashBuildId": "b1", "flashEnvironmentId": "env-1"})
        self.queries += 1
        return {"flashBuild": {"id": "b1", "manifest": self.manifest}}

    def vanish(self) -> None:
        """Nobody listens any more."""
        self.over.set()
        if self.holding is not None:
            self.holding.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def state_manager(manifest: Mapping[str, Any] | None = None) -> Iterator[StateManager]:
    state = StateManager(manifest)
    try:
        yield state
    finally:
        if state._thread.is_alive():
            state.vanish()
