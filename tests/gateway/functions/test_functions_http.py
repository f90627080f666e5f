"""Functions behind an HTTP address: what they are sent, what their answers mean, and everything that goes wrong."""

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest
from external_fixtures import Asked, Bench, Settings, WebFunction, answer, echo, play, refused, until

from flashmesh.executions.record import StaleAttempt
from flashmesh.functions.errors import ExecutionNotFound, ValidationError
from flashmesh.gateway.access.certificates import AUTHORITY_FILE, own_certificate, server_ssl_context
from flashmesh.kit.ids import ExecutionId
from flashmesh.wire.arguments import encode_arguments
from flashmesh.wire.frames import BINARY, JSON, MSGPACK, Error, Result


def test_a_function_gets_the_invocation_request_and_its_headers_and_the_bytes_come_back() -> None:
    async def scenario(bench: Bench) -> None:
        async def raw(asked: Asked, _: Any) -> bytes:
            return answer(b'{"a" :  1.50}')

        async with WebFunction(raw) as function:
            await bench.create(endpointUrl=function.url)
            body = b'{"input": {"x": 1}, "metadata": {"k": "v"}}'
            parent = f"00-{'a' * 32}-{'b' * 16}-01"
            call = bench.call(payload=body, idempotency_key="key-1", trace=parent)
            frame = await call.end()
            assert isinstance(frame, Result)
            assert frame.payload == b'{"a" :  1.50}', "not re-encoded"
            asked = function.asked[0]
            assert asked.line == "POST /invoke HTTP/1.1"
            assert asked.body == body
            headers = asked.headers
            assert headers["x-execution-id"] == call.execution
            assert headers["x-dispatch-attempt"] == "1"
            assert headers["x-timeout-ms"] == "30000"
            assert headers["idempotency-key"] == "key-1"
            assert headers["x-trace-id"] == "a" * 32
            trace, span = headers["traceparent"].split("-")[1:3]
            assert trace == "a" * 32
            assert span != "b" * 16, "the call to the function is a span of its own"
            assert headers["content-type"] == JSON

    play(scenario)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (answer(b"[1, 2]"), [1, 2]),
        (answer(b"hello", media="text/plain; charset=utf-8"), "hello"),
        (answer("é".encode("latin-1"), media="text/plain; charset=latin-1"), "é"),
        (answer(b"\x00\x01", media="application/octet-stream"), b"\x00\x01"),
        (answer(b"", status="204 No Content"), None),
        (answer(b'{"x":1}', media="application/problem+json"), {"x": 1}),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue", True),
        (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n42", 42),
        (b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n"a\r\n1\r\n"\r\n0\r\nx: y\r\n\r\n', "a"),
    ],
)
def test_an_answer_is_taken_by_its_media_type(given: bytes, wanted: Any) -> None:
    async def scenario(bench: Bench) -> None:
        async def say(asked: Asked, _: Any) -> bytes:
            return given

        async with WebFunction(say) as function:
            await bench.create(endpointUrl=function.url)
            assert await bench.call().output() == wanted

    play(scenario)


def test_arguments_of_a_python_caller_become_the_input() -> None:
    async def scenario(bench: Bench) -> None:
        async with WebFunction(echo) as function:
            await bench.create(endpointUrl=function.url)
            for args, kwargs, wanted in (
                ((), {"a": 1}, {"a": 1}),
                (("x",), {}, "x"),
                ((1, 2), {}, [1, 2]),
                ((), {}, None),
            ):
                call = bench.call(payload=encode_arguments(args, kwargs), content_type=MSGPACK)
                assert await call.output() == wanted
            assert await bench.call(payload=b'{"x": 1}', metadata={"m": "n"}).output() == {"x": 1}
            assert msgspec.json.decode(function.asked[-1].body)["metadata"] == {"m": "n"}
            code, message = await bench.call(
                payload=encode_arguments((float("nan"),), {}), content_type=MSGPACK
            ).error()
            assert code == "VALIDATION_ERROR"
            assert "JSON" in message

    play(scenario)


def test_raw_bytes_go_out_as_they_are() -> None:
    async def scenario(bench: Bench) -> None:
        async def size(asked: Asked, _: Any) -> bytes:
            return answer(b"%d" % len(asked.body))

        async with WebFunction(size) as function:
            await bench.create(endpointUrl=function.url)
            assert await bench.call(payload=bytes(1000), content_type=BINARY).output() == 1000
            assert function.asked[0].headers["content-type"] == BINARY

    play(scenario)


def test_connections_are_kept_and_no_more_calls_are_in_flight_than_concurrency() -> None:
    async def scenario(bench: Bench) -> None:
        most = 0

        async def slow(asked: Asked, _: Any) -> bytes:
            nonlocal most
            most = max(most, function.open)
            return answer(b"1")

        async with WebFunction(slow) as function:
            await bench.create(endpointUrl=function.url, concurrency=3)
            await asyncio.gather(*(bench.call().output() for _ in range(30)))
            assert len(function.asked) == 30
            assert function.connections <= 3
            assert most <= 3

    play(scenario)


def test_changing_concurrency_reaches_the_calls_that_wait() -> None:
    async def scenario(bench: Bench) -> None:
        go = asyncio.Event()

        async def hold(asked: Asked, _: Any) -> bytes:
            await go.wait()
            return answer(b"1")

        async with WebFunction(hold) as function:
            await bench.create(endpointUrl=function.url, concurrency=1)
            calls = [bench.call() for _ in range(3)]
            await until(lambda: len(function.asked) == 1)
            changed = await bench.registry.patch("f", b'{"concurrency": 3}')
            assert changed["concurrency"] == 3
            await until(lambda: len(function.asked) == 3)
            go.set()
            for call in calls:
                await call.output()

    play(scenario)


def test_an_error_answer_fails_the_call_with_its_status_and_beginning() -> None:
    async def scenario(bench: Bench) -> None:
        async def fail(asked: Asked, _: Any) -> bytes:
            return answer(b'{"error": "no such cat"}' + b"x" * 2000, status="404 Not Found")

        async with WebFunction(fail) as function:
            await bench.create(endpointUrl=function.url)
            code, message = await bench.call(kind="async").error()
            assert code == "EXTERNAL_ERROR"
            assert "404" in message
            assert "no such cat" in message
            assert len(message) < 600
            assert len(function.asked) == 1, "a function's own failure is not repeated unless that was asked for"

    play(scenario)


def test_failures_are_repeated_when_max_retries_was_given() -> None:
    async def scenario(bench: Bench) -> None:
        async def second_time(asked: Asked, _: Any) -> bytes:
            again = asked.headers["x-dispatch-attempt"] == "2"
            return answer(b'"done"') if again else answer(b"oops", status="500 Internal Server Error")

        async with WebFunction(second_time) as function:
            await bench.create(endpointUrl=function.url, maxRetries=1)
            assert await bench.call().output() == "done"

    play(scenario)


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_busy_function_is_asked_again_after_what_it_says(status: str) -> None:
    async def scenario(bench: Bench) -> None:
        at: list[float] = []

        async def busy(asked: Asked, _: Any) -> bytes:
            at.append(bench.clock.now())
            return answer(b"later", status=status, retry_after="0.3") if len(at) == 1 else answer(b"1")

        async with WebFunction(busy) as function:
            await bench.create(endpointUrl=function.url)
            assert await bench.call(kind="async").output() == 1
            assert at[1] - at[0] >= 0.29
            at.clear()
            code, _ = await bench.call().error()
            assert code == "EXTERNAL_BUSY", "a sync call without a key is the caller's to repeat"

    play(scenario)


def test_a_refused_connection_certainly_did_not_run_and_async_calls_try_again() -> None:
    async def scenario(bench: Bench) -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
        await bench.create(endpointUrl=f"http://127.0.0.1:{port}/")
        frame = await bench.call().end()
        assert isinstance(frame, Error)
        assert (frame.code, frame.ran) == ("ENDPOINT_UNREACHABLE", False)
        waiting = bench.call(kind="async")
        await until(lambda: bench.dispatcher.execution(ExecutionId(waiting.execution)).attempt > 1)
        server = await asyncio.start_server(lambda reader, writer: serve_once(reader, writer), "127.0.0.1", port)
        async with server:
            assert await waiting.output() == "up"

    async def serve_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(b'"up"', connection="close"))
        writer.close()

    play(scenario)


def test_a_connection_that_breaks_midway_loses_the_call() -> None:
    async def scenario(bench: Bench) -> None:
        async def broken(asked: Asked, writer: asyncio.StreamWriter) -> bytes | None:
            if asked.headers["x-dispatch-attempt"] == "2":
                return answer(b"2")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
            await writer.drain()
            return None

        async with WebFunction(broken) as function:
            await bench.create(endpointUrl=function.url)
            code, message = await bench.call().error()
            assert code == "WORKER_LOST"
            assert "in the middle" in message
            assert await bench.call(kind="async").output() == 2
            assert await bench.call(idempotency_key="k").output() == 2, "a key makes it safe to repeat"

    play(scenario)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not HTTP"),
        (answer(b"{", media=JSON), "not JSON"),
        (answer(b'"\xff"', media=JSON), "not UTF-8"),
        (answer(b"NaN", media=JSON), "not JSON"),
        (answer(b"", status="302 Found", location="http://10.0.0.1/"), "redirects are not followed"),
        (b"HTTP/1.1 200 OK\r\n" + b"x-y: z\r\n" * 10_000, "head"),
    ],
)
def test_garbage_is_an_external_error(given: bytes, part: str) -> None:
    async def scenario(bench: Bench) -> None:
        async def say(asked: Asked, _: Any) -> bytes:
            return given

        async with WebFunction(say) as function:
            await bench.create(endpointUrl=function.url)
            code, message = await bench.call().error()
            assert code == "EXTERNAL_ERROR"
            assert part in message

    play(scenario)


def test_a_second_answer_to_one_request_is_never_given_to_the_next_call() -> None:
    async def scenario(bench: Bench) -> None:
        async def twice(asked: Asked, _: Any) -> bytes:
            return answer(msgspec.json.encode(asked.input)) + answer(b'"smuggled"')

        async with WebFunction(twice) as function:
            await bench.create(endpointUrl=function.url, concurrency=1)
            assert [await bench.call("f", n).output() for n in range(5)] == [0, 1, 2, 3, 4]

    play(scenario)


def test_a_function_that_hangs_is_stopped_at_its_limit_and_its_slot_comes_back() -> None:
    async def scenario(bench: Bench) -> None:
        async def hang(asked: Asked, _: Any) -> bytes:
            if asked.input == "hang":
                await asyncio.Event().wait()
            return answer(b"1")

        async with WebFunction(hang) as function:
            await bench.create(endpointUrl=function.url, concurrency=1, timeoutMs=200)
            code, message = await bench.call("f", "hang").error()
            assert code == "TIMEOUT"
            assert "200 ms" in message
            assert await bench.call("f", "fine").output() == 1
            await until(lambda: function.open == 1)

    play(scenario)


def test_an_endless_answer_is_bounded_in_time_and_in_bytes() -> None:
    async def scenario(bench: Bench) -> None:
        async def endless(asked: Asked, writer: asyncio.StreamWriter) -> bytes | None:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            try:
                while True:
                    writer.write(b"1\r\nx\r\n" if asked.input == "slow" else b"10000\r\n" + b"x" * 65536 + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.01 if asked.input == "slow" else 0)
            except ConnectionError:
                return None

        async with WebFunction(endless) as function:
            await bench.create(endpointUrl=function.url, timeoutMs=400)
            assert (await bench.call("f", "slow").error())[0] == "TIMEOUT"
            await bench.registry.patch("f", b'{"timeoutMs": 20000}')
            code, message = await bench.call("f", "fast").error()
            assert code == "PAYLOAD_TOO_LARGE"
            assert "100000" in message
            await until(lambda: function.open == 0)

    play(scenario, settings=Settings(max_body_bytes=100_000))


def test_answers_of_64_mb_arrive_whole_and_one_byte_more_is_refused() -> None:
    async def scenario(bench: Bench) -> None:
        limit = 64 * 1024 * 1024

        async def big(asked: Asked, _: Any) -> bytes:
            return answer(bytes(asked.input), media=BINARY)

        async with WebFunction(big) as function:
            await bench.create(endpointUrl=function.url)
            assert len(await bench.call("f", limit).output()) == limit
            assert (await bench.call("f", limit + 1).error())[0] == "PAYLOAD_TOO_LARGE"

    play(scenario)


def test_cancelling_closes_the_connection() -> None:
    async def scenario(bench: Bench) -> None:
        async def hang(asked: Asked, _: Any) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

        async with WebFunction(hang) as function:
            await bench.create(endpointUrl=function.url)
            call = bench.call()
            await until(lambda: function.open == 1)
            bench.dispatcher.cancel(ExecutionId(call.execution))
            assert (await call.error())[0] == "CANCELLED"
            await until(lambda: function.open == 0)

    play(scenario)


def test_a_function_may_answer_202_and_complete_later_once_and_only_for_its_attempt() -> None:
    async def scenario(bench: Bench) -> None:
        async def later(asked: Asked, _: Any) -> bytes:
            return answer(b"", status="202 Accepted")

        async with WebFunction(later) as function:
            await bench.create(endpointUrl=function.url, concurrency=1, timeoutMs=5000)
            call = bench.call()
            await until(lambda: function.asked)
            complete = bench.registry.posted.complete
            await until(lambda: bench.endpoint()["running"] == 1)
            with pytest.raises(StaleAttempt):
                complete(call.execution, 2, b'{"success": true}')
            with pytest.raises(ExecutionNotFound):
                complete("nobody", 1, b'{"success": true}')
            with pytest.raises(ValidationError):
                complete(call.execution, 1, b'{"success": "yes"}')
            assert not call.ended
            complete(call.execution, 1, b'{"success": true, "output": {"n":  1}}')
            frame = await call.end()
            assert isinstance(frame, Result)
            assert frame.payload == b'{"n":  1}'
            complete(call.execution, 1, b'{"success": false, "error": {"code": "X", "message": "late"}}')
            failing = bench.call()
            await until(lambda: len(function.asked) == 2)
            complete(failing.execution, None, b'{"success": false, "error": {"code": "HANDLER", "message": "no"}}')
            assert await failing.error() == ("EXTERNAL_ERROR", "HANDLER: no")
            assert await_status(bench, call.execution) == "SUCCESS"

    play(scenario)


def await_status(bench: Bench, execution: str) -> str:
    return str(bench.dispatcher.execution(ExecutionId(execution)).status)


def test_a_function_that_answers_202_and_forgets_times_out() -> None:
    async def scenario(bench: Bench) -> None:
        async def later(asked: Asked, _: Any) -> bytes:
            return answer(b"", status="202 Accepted")

        async with WebFunction(later) as function:
            await bench.create(endpointUrl=function.url, timeoutMs=150)
            call = bench.call()
            assert (await call.error())[0] == "TIMEOUT"
            bench.registry.posted.complete(call.execution, 1, b'{"success": true}')
            assert await_status(bench, call.execution) == "TIMEOUT"

    play(scenario)


def test_completing_before_the_http_answer_counts_once_and_keeps_the_slot_until_it_is_there() -> None:
    async def scenario(bench: Bench) -> None:
        go = asyncio.Event()

        async def both(asked: Asked, _: Any) -> bytes:
            await go.wait()
            return answer(b'"by http"')

        async with WebFunction(both) as function:
            await bench.create(endpointUrl=function.url, concurrency=1)
            first, second = bench.call(), bench.call()
            await until(lambda: function.asked)
            bench.registry.posted.complete(first.execution, 1, b'{"success": true, "output": "by request"}')
            assert await first.output() == "by request"
            assert bench.endpoint()["queued"] == 1, "the function is still at the first call"
            go.set()
            assert await second.output() == "by http"

    play(scenario)


def test_plain_http_goes_only_where_settings_allow_it() -> None:
    async def scenario(bench: Bench) -> None:
        error = await refused(bench.create(endpointUrl="http://10.1.2.3/x"))
        assert error.status == 422
        assert getattr(error, "field", None) == "endpointUrl"
        await bench.create("named", endpointUrl="http://localhost:1/x")
        assert (await bench.call("named").error())[0] == "ENDPOINT_UNREACHABLE"

    async def allowed(bench: Bench) -> None:
        await bench.create(endpointUrl="http://10.1.2.3/x")
        await refused(bench.create("g", endpointUrl="http://10.2.2.3/x"))

    play(scenario)
    play(allowed, settings=Settings(plain_networks=("10.1.0.0/16",)))


def test_removing_a_function_lets_running_calls_finish_and_fails_those_that_wait() -> None:
    async def scenario(bench: Bench) -> None:
        go = asyncio.Event()

        async def hold(asked: Asked, _: Any) -> bytes:
            await go.wait()
            return answer(msgspec.json.encode(asked.input))

        async with WebFunction(hold) as function:
            await bench.create(endpointUrl=function.url, concurrency=1)
            running, waiting = bench.call("f", "running"), bench.call("f", "waiting", kind="async")
            await until(lambda: function.asked)
            await bench.registry.delete("f")
            assert (await waiting.error())[0] == "FUNCTION_REMOVED"
            assert (await refused(bench.registry.delete("f"))).status == 404
            await bench.create(endpointUrl=function.url, concurrency=1)
            newer = bench.call("f", "newer")
            go.set()
            assert await running.output() == "running"
            assert await newer.output() == "newer"

    play(scenario)


def test_https_checks_the_certificate_and_the_name(tmp_path: Path) -> None:
    certificate = own_certificate(tmp_path, ["127.0.0.1"])
    server = server_ssl_context(certificate.cert, certificate.key)

    async def trusted(bench: Bench) -> None:
        async with WebFunction(echo, server) as function:
            await bench.create(endpointUrl=f"https://127.0.0.1:{function.port}/invoke", concurrency=1)
            assert [await bench.call("f", n).output() for n in range(3)] == [0, 1, 2]
            assert function.connections == 1

    async def untrusted(bench: Bench) -> None:
        async with WebFunction(echo, server) as function:
            await bench.create(endpointUrl=f"https://127.0.0.1:{function.port}/invoke")
            code, message = await bench.call("f", 1).error()
            assert code == "ENDPOINT_UNREACHABLE"
            assert "certificate" in message
            assert not function.asked

    play(trusted, tls=lambda: ssl.create_default_context(cafile=str(tmp_path / AUTHORITY_FILE)))

    async def broken(bench: Bench) -> None:
        await bench.create(endpointUrl="https://127.0.0.1:1/invoke")
        code, message = await bench.call("f", 1).error()
        assert code == "ENDPOINT_UNREACHABLE"
        assert "no such store" in message

    def fail() -> ssl.SSLContext:
        raise RuntimeError("no such store")

    play(untrusted)
    play(broken, tls=fail)
