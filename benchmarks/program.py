"""The product as a program: a command in a home of its own, asked over HTTP, and ended as its user would end it."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

END_S = 120.0
"""How long a program may take to leave: what runs may finish."""


def flash() -> str:
    """The command, of the Python that measures."""
    return str(Path(sys.executable).with_name("flash"))


def environment(home: Path, variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """For a program whose home is that folder."""
    return {**os.environ, "FLASH_HOME": str(home), **(variables or {})}


@contextmanager
def started(
    command: Sequence[str], *, environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run it, waiting for nothing, and end it as Ctrl-C does. What it prints goes to a file, as a service's does."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(END_S)


def opened(url: str, body: object = None, *, token: str = "") -> Any:
    """The answer as a file: to a POST of that JSON where there is a body. Raises for another status than success."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers), timeout=60)


def ask(url: str, body: object = None, *, token: str = "") -> Any:
    """The same, read as JSON."""
    with opened(url, body, token=token) as answer:
        return json.load(answer)
