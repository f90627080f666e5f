"""`flash login`: which server commands use."""

import dataclasses
import json
import ssl
import sys
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import click

from flashmesh.cli.commands import set_up_logging, verbose
from flashmesh.dev.servers import LOGIN_FILE, LoginFailed, ServerAddress, server_address
from flashmesh.functions.credentials import check_address, is_loopback
from flashmesh.kit.home import flash_home

_DEFAULT_PORT: Final = 7470
_TIMEOUT_S: Final = 10.0
_EPILOG = """\b
Examples:
  flash login                                        # where commands go now
  flash login https://box.lan:7470 --token -         # the token from stdin
  flash login https://10.0.0.5:7470 --fingerprint sha256:5f1c...  # a server with a certificate of its own
  flash login --forget                               # back to this machine's server
"""


@click.command(epilog=_EPILOG)
@click.argument("url", required=False)
@click.option("--token", "given", metavar="TOKEN|-", help="The token to use; `-` reads it from stdin.")
@click.option("--fingerprint", help="The server's certificate or authority, as `flash server` printed it.")
@click.option("--forget", is_flag=True, help="Use this machine's server again.")
@verbose
def login(url: str | None, given: str | None, fingerprint: str | None, forget: bool, verbose: bool) -> None:
    """Say which server commands use, after asking it. FLASH_SERVER and FLASH_TOKEN win over it.

    Without URL: show which one that is.
    """
    set_up_logging(verbose)
    if forget:
        (flash_home() / LOGIN_FILE).unlink(missing_ok=True)
        click.echo("Forgotten. Commands use the server of this machine.", err=True)
    elif url is None:
        _show()
    else:
        _log_in(_whole_url(url), given, fingerprint)


def _show() -> None:
    found = server_address()
    if found is None:
        raise LoginFailed("No server is known. Start one with `flash server`, or name one: `flash login URL`.")
    click.echo(found.url)
    click.echo(f"Named by {found.source}; {'with' if found.token else 'without'} a token.", err=True)


def _log_in(parts: SplitResult, given: str | None, fingerprint: str | None) -> None:
    url = f"{parts.scheme}://{parts.netloc}"
    check_address(url)
    anchor = _anchor(parts, fingerprint) if parts.scheme == "https" else None
    address = ServerAddress(url=url, anchor=anchor, source="flash login")
    _expect_server(address)
    address = dataclasses.replace(address, token=_token(parts, given))
    _expect_welcome(address)
    _write(address)
    click.echo(f"Commands use {url} from now on{_shown_name(address.token)}.", err=True)


def _whole_url(url: str) -> SplitResult:
    """`box.lan`, `box.lan:7470` and whole addresses. Beyond this machine https is meant."""
    if "://" not in url:
        host = urlsplit(f"//{url}").hostname or ""
        url = f"{'http' if is_loopback(host) else 'https'}://{url}"
        if urlsplit(url).port is None:
            url = f"{url.rstrip('/')}:{_DEFAULT_PORT}"
    parts = urlsplit(url)
    if not parts.hostname or parts.username or parts.path.strip("/") or parts.query or parts.fragment:
        raise click.UsageError(f"{url} is not the address of a server. Say for example https://box.lan:7470.")
    return parts


def _anchor(parts: SplitResult, fingerprint: str | None) -> str | None:
    """The certificate to trust; None where this machine trusts the server's already."""
    from flashmesh.gateway.access import pinning

    host, port = parts.hostname or "", parts.port or 443
    try:
        chain = pinning.shown_chain(host, port, timeout_s=_TIMEOUT_S)
    except OSError as error:
        raise LoginFailed(f"Nothing speaks TLS at {host}:{port} ({error}). Is it the server's address?") from error
    if fingerprint is None:
        return None
    try:
        return pinning.trusted(chain, fingerprint)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _expect_server(address: ServerAddress) -> None:
    """Raises LoginFailed unless a server answers there that is known to be the right one."""
    try:
        status, _ = _get(address, "/healthz")
    except ssl.SSLCertVerificationError as error:
        raise LoginFailed(_untrusted(address, error)) from error
    except OSError as error:
        raise LoginFailed(
            f"{address.url} does not answer ({error}). Start it there: `flash server --host …`."
        ) from error
    if status != 200:
        raise LoginFailed(
            f"{address.url}/healthz answers {status}: that is no server of ours, or one that is stopping."
        )


def _untrusted(address: ServerAddress, error: ssl.SSLCertVerificationError) -> str:
    from flashmesh.gateway.access import pinning

    host, port = urlsplit(address.url).hostname or "", urlsplit(address.url).port or 443
    if address.anchor is not None or "ostname mismatch" in error.verify_message or "IP address" in error.verify_message:
        return (
            f"The certificate of {address.url} is for other names ({error.verify_message}). Use one of those, or start "
            f"that server with `--allow-host {host}`."
        )
    shown = pinning.fingerprint_of(pinning.shown_chain(host, port, timeout_s=_TIMEOUT_S)[-1])
    return (
        f"This machine does not trust the certificate of {address.url} ({error.verify_message}). It shows {shown}. "
        f"If `flash server` printed the same there: `flash login {address.url} --fingerprint {shown}`."
    )


def _token(parts: SplitResult, given: str | None) -> str | None:
    if given == "-":
        given = sys.stdin.readline().strip()
    if given is None and not is_loopback(parts.hostname or ""):
        if not sys.stdin.isatty():
            raise click.UsageError("A token is needed: `--token -` reads it from stdin.")
        given = click.prompt("Token", hide_input=True, err=True)
    return given or None


def _expect_welcome(address: ServerAddress) -> None:
    """Raises LoginFailed when the server refuses the token."""
    status, body = _get(address, "/v1/functions")
    if status == 403 and address.token is not None:
        return  # a good token that may do other things
    if status in (401, 403):
        raise LoginFailed(f"{address.url} refuses: {_message(body)}")


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return "it gave no reason."


def _get(address: ServerAddress, path: str) -> tuple[int, bytes]:
    """One answer. Redirects are not followed: they would take the token elsewhere."""
    import http.client

    parts = urlsplit(address.url)
    host, context = parts.hostname or "", address.ssl_context()
    connection: Any
    if context is None:
        connection = http.client.HTTPConnection(host, parts.port, timeout=_TIMEOUT_S)
    else:
        connection = http.client.HTTPSConnection(host, parts.port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("GET", path, headers=address.headers())
        answer = connection.getresponse()
        return answer.status, answer.read(65536)
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP: {type(error).__name__}") from error
    finally:
        connection.close()


def _write(address: ServerAddress) -> None:
    from flashmesh.kit.machine import replace

    home = flash_home()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    document = {"url": address.url, "token": address.token, "anchor": address.anchor}
    replace(home / LOGIN_FILE, json.dumps(document, indent=1).encode() + b"\n")


def _shown_name(token: str | None) -> str:
    if token is None:
        return ", without a token"
    from flashmesh.wire.tokens import TokenRefused, read_claims

    try:
        claims = read_claims(token.encode())
    except TokenRefused:
        return ""
    return f", as {claims.sub} ({claims.scope})"
