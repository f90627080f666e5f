"""The examples in other languages, as their README registers them, through the real adapters."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from external_fixtures import Bench, play, until

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "other-languages"


def specs() -> dict[str, dict[str, Any]]:
    """The specs of the README's curl lines, by name."""
    found = [json.loads(text) for text in re.findall(r"/v1/functions -d '(\{.*?\})'", readme(), re.DOTALL)]
    return {spec["name"]: spec for spec in found}


def readme() -> str:
    return (EXAMPLES / "README.md").read_text()


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed here")


def test_a_function_in_node_answers_over_http() -> None:
    needs("node")

    async def scenario(bench: Bench) -> None:
        await bench.registry.create(json.dumps(specs()["words"]).encode())
        output = await bench.call("words", "to be or not to be").output()
        assert output == {"words": 6, "counts": {"to": 2, "be": 2, "or": 1, "not": 1}}
        code, message = await bench.call("words", 5).error()
        assert code == "EXTERNAL_ERROR"
        assert "input must be text" in message
        call = bench.call("words", "")
        await call.output()
        await until(lambda: f"execution {call.execution}" in bench.texts("stdout"))

    play(scenario, directory=EXAMPLES)


def test_a_function_in_perl_answers_line_by_line() -> None:
    needs("perl")

    async def scenario(bench: Bench) -> None:
        await bench.registry.create(json.dumps(specs()["reverse"]).encode())
        assert await bench.call("reverse", "stressed").output() == "desserts"
        assert await bench.call("reverse", "Ünï\n").output() == "\nïnÜ"
        assert await bench.call("reverse", None).error() == ("EXTERNAL_ERROR", "input must be text")
        await until(lambda: "reversing 8 characters" in bench.texts("stderr"))

    play(scenario, directory=EXAMPLES)


def test_a_function_in_shell_answers_with_a_file() -> None:
    async def scenario(bench: Bench) -> None:
        await bench.registry.create(json.dumps(specs()["checksum"]).encode())
        output = await bench.call("checksum", [1, 2, 3]).output()
        assert output["bytes"] == len(b'{"input":[1,2,3]}')

    play(scenario, directory=EXAMPLES)


def test_the_readme_registers_a_remote_address_too() -> None:
    async def scenario(bench: Bench) -> None:
        made = await bench.registry.create(json.dumps(specs()["remote"]).encode())
        assert made["concurrency"] == 16

    play(scenario)
