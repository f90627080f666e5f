"""What is changed in heads on their way, and what is not."""

from pathlib import Path

import pytest
from access_fixtures import Door

from flashmesh.gateway.lb.heads import (
    BadHead,
    Destination,
    answer_head,
    destination,
    request_head,
    to_client,
    to_endpoint,
)

BASE = b"Host: localhost:7470\r\n"


def passed(*lines: bytes, target: bytes = b"/lb/web/a?b=c") -> bytes:
    data = b"GET %b HTTP/1.1\r\n" % target + BASE + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    where = destination(data)
    assert where is not None
    return to_endpoint(request_head(data), where, client="10.1.1.1", scheme="https")


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        (b"/lb/web/a/b?c=d", b"x", Destination("web", b"/a/b?c=d", b"/lb/web")),
        (b"/lb/web", b"x", Destination("web", b"/", b"/lb/web")),
        (b"/lb/web?c=d", b"x", Destination("web", b"/?c=d", b"/lb/web")),
        (b"/lb/shop%20window/%2e%2F", b"x", Destination("shop window", b"/%2e%2F", b"/lb/shop%20window")),
        (b"/a", b"Web.localhost:7470", Destination("web", b"/a", b"")),
        (b"/lb/other/a", b"web.localhost", Destination("other", b"/a", b"/lb/other")),
        (b"/a", b"localhost:7470", None),
        (b"/lbx/a", b"web.example.com", None),
    ],
)
def test_an_endpoint_is_named_by_path_or_host(target: bytes, host: bytes, expected: Destination | None) -> None:
    assert destination(b"GET %b HTTP/1.1\r\nA: b\r\nHost: %b\r\n\r\n" % (target, host)) == expected


def test_headers_pass_as_they_came_and_say_who_asked() -> None:
    sent = passed(b"X-One: a", b"x-one:b  ", b"Connection: close, x-drop", b"X-Drop: 1", b"X-Forwarded-For: 9.9.9.9")
    assert sent.startswith(b"GET /a?b=c HTTP/1.1\r\n" + BASE + b"X-One: a\r\nx-one:b  \r\n")
    assert b"Drop" not in sent
    assert sent.endswith(
        b"x-forwarded-for: 9.9.9.9, 10.1.1.1\r\nx-forwarded-proto: https\r\n"
        b"x-forwarded-host: localhost:7470\r\nx-forwarded-prefix: /lb/web\r\nconnection: close\r\n\r\n"
    )


def test_a_connection_header_cannot_take_away_what_frames_the_message() -> None:
    sent = passed(b"Content-Length: 5", b"Connection: content-length, host")
    assert b"Content-Length: 5\r\n" in sent and BASE in sent


def test_tokens_of_the_platform_stay_with_it_and_others_pass(tmp_path: Path) -> None:
    ours = Door(tmp_path).issue("call").encode()
    assert b"Authorization: Bearer somebody-elses\r\n" in passed(b"Authorization: Bearer somebody-elses")
    assert b"uthorization" not in passed(b"Authorization: Bearer " + ours)
    assert b"cookie: a=b; c=d\r\n" in passed(b"Cookie: a=b; flash_server_token=secret; c=d")
    assert b"ookie" not in passed(b"Cookie: flash_server_token=secret")


def test_a_websocket_is_asked_for_and_another_upgrade_is_not() -> None:
    assert passed(b"Connection: keep-alive, Upgrade", b"Upgrade: websocket").endswith(
        b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    )
    assert b"pgrade" not in passed(b"Connection: Upgrade", b"Upgrade: h2c")


def test_answers_lose_only_what_belongs_to_one_hop() -> None:
    head = answer_head(b"HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nset-cookie: b\r\nConnection: close\r\nX: y\r\n\r\n")
    assert to_client(head, connection=b"") == b"HTTP/1.1 200 Fine\r\nSet-Cookie: a\r\nset-cookie: b\r\nX: y\r\n\r\n"


@pytest.mark.parametrize(
    "head", [b"HTTP/2 200 OK\r\n\r\n", b"HTTP/1.1 99 x\r\n\r\n", b"HTTP/1.1 200 OK\r\n a: b\r\n\r\n"]
)
def test_what_is_no_answer_is_refused(head: bytes) -> None:
    with pytest.raises(BadHead):
        answer_head(head)
