"""What a function's answer means. Pure."""

import dataclasses
import email.utils
import math
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from flashmesh.functions.errors import ExternalBusy, ExternalError, FlashmeshError
from flashmesh.wire.frames import BINARY, JSON

SHOWN_CHARACTERS: Final = 500
"""How much of a foreign error's body is shown."""
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """It succeeded: the bytes as they came."""

    content_type: str
    payload: bytes


class Later:
    """It was accepted and completes by `:complete`."""


LATER: Final = Later()


def of_http(status: int, headers: Mapping[str, str], body: bytes) -> Output | Later | FlashmeshError:
    """What an HTTP answer means. `headers` has lower-case names."""
    if status == 202:
        return LATER
    if 200 <= status < 300:
        return of_body(headers.get("content-type", ""), body)
    said = shown(body)
    if status in (429, 503):
        return ExternalBusy(f"it answered {status}: {said}", retry_after=retry_after_s(headers.get("retry-after")))
    if 300 <= status < 400:
        return ExternalError(f"it answered {status}; redirects are not followed. Give the final address")
    return ExternalError(f"it answered {status}: {said}")


def of_body(content_type: str, body: bytes) -> Output | FlashmeshError:
    """A success by its media type: JSON and bytes as they came, text as a JSON string, nothing as null."""
    media, parameters = JSON, ""
    if content_type != JSON:
        media, _, parameters = content_type.partition(";")
        media = media.strip().lower()
    if not body:
        return Output(JSON, b"null") if media != BINARY else Output(BINARY, b"")
    if media == JSON or media.endswith("+json"):
        fault = json_fault(body)
        return (
            Output(JSON, body) if fault is None else ExternalError(f"its answer is not JSON ({fault}): {shown(body)}")
        )
    if media.startswith("text/"):
        return Output(JSON, msgspec.json.encode(_text(body, parameters)))
    if not media and json_fault(body) is None:
        return Output(JSON, body)
    return Output(BINARY, body)


def of_line(line: bytes) -> Output | FlashmeshError:
    """What a program wrote for one call: JSON; an object whose only key is `error` says that it failed."""
    line = line.strip()
    fault = "nothing" if not line else json_fault(line)
    if fault is not None:
        return ExternalError(f"it wrote a line that is not JSON ({fault}): {shown(line)}")
    if line.startswith(b"{") and b'"error"' in line[:64]:
        said = msgspec.json.decode(line)
        if len(said) == 1 and isinstance(said.get("error"), str | dict):
            return ExternalError(message_of(said["error"]))
    return Output(JSON, line)


def message_of(error: object) -> str:
    """The words of an error as functions give it: text, or an object with `message` and perhaps `code`."""
    if isinstance(error, dict):
        code, message = error.get("code"), error.get("message")
        words = f"{code}: {message}" if code and message else str(message or code or error)
    else:
        words = str(error)
    return words if len(words) <= SHOWN_CHARACTERS else f"{words[:SHOWN_CHARACTERS]} …"


def json_fault(body: bytes) -> str | None:
    """Why it is not JSON; None when it is. Looks at every byte and builds nothing."""
    try:
        _RAW.decode(body)
        if not body.isascii():
            body.decode()
    except msgspec.DecodeError as error:
        return str(error).removeprefix("JSON is malformed: ")
    except UnicodeDecodeError:
        return "not UTF-8"
    return None


def shown(body: bytes) -> str:
    """The beginning of a foreign body, fit for a message."""
    text = body[: SHOWN_CHARACTERS * 4].decode(errors="replace")
    text = "".join(character if character.isprintable() else " " for character in text).strip()
    return text[:SHOWN_CHARACTERS] or "(nothing)"


def retry_after_s(value: str | None, now: float | None = None) -> float | None:
    """Seconds of a Retry-After header: a number or a date. None when there is none, or nonsense."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now)
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _text(body: bytes, parameters: str) -> str:
    _, _, charset = parameters.lower().partition("charset=")
    try:
        return body.decode(charset.strip(' "') or "utf-8", errors="replace")
    except (LookupError, ValueError):
        return body.decode(errors="replace")
