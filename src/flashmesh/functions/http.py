"""One HTTP request with a JSON body and a JSON answer, by the standard library alone."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request

from flashmesh.functions.credentials import check_address, is_loopback, key_for
from flashmesh.functions.errors import EndpointUnreachable, RequestFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHOWN_BODY = 500
"""Characters of an error's body that go into the message."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the key to another host, so it is an answer like any other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def request_json(method: str, url: str, body: Any = None, *, timeout: float = 60.0) -> Any:
    """The decoded answer; None when it is empty, text when it is not JSON. Blocks.

    Raises:
        InsecureAddress: the address is neither https nor on this machine.
        RequestFailed: the answer's status is not 2xx.
        EndpointUnreachable: no answer, or half of one. Whether the request arrived is not known.
    """
    parts = check_address(url)
    data = None if body is None else json.dumps(body).encode()
    headers = {"Accept": "application/json"}
    if data is not None:
        headers["Content-Type"] = "application/json"
    key = key_for(url)
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    # A proxy is for other machines: this one is reached directly whatever HTTP_PROXY says.
    proxies = urllib.request.ProxyHandler({} if is_loopback(parts.hostname or "") else None)
    opener = urllib.request.build_opener(_NoRedirect, proxies)
    try:
        with opener.open(request, timeout=timeout) as answer:
            return _decoded(answer.read(), answer.headers.get_content_type())
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(method, url, error) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise EndpointUnreachable(
            f"No answer from {parts.hostname}: {reason}. Check that it is up and that the network reaches it."
        ) from error


def _decoded(body: bytes, content_type: str) -> Any:
    if not body:
        return None
    if content_type == "application/json" or content_type.endswith("+json"):
        try:
            return json.loads(body)
        except ValueError as error:
            raise RequestFailed(f"The answer claims to be JSON and is not: {error}.", status_code=200) from error
    return body.decode("utf-8", "replace")


def _refusal(method: str, url: str, error: urllib.error.HTTPError) -> RequestFailed:
    try:
        text = error.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    shown = " ".join(text.split())[:SHOWN_BODY]
    address = url.partition("?")[0]
    message = f"{method} {address} answered {error.code}" + (f": {shown}" if shown else ".")
    if 300 <= error.code < 400:
        message = f"{method} {address} answered with a redirect ({error.code}), which is not followed. Use its target."
    elif error.code == 401:
        message += " Set RUNPOD_API_KEY (or FLASH_TOKEN for a server of yours) to a valid key."
    return RequestFailed(message, status_code=error.code, body=text)
