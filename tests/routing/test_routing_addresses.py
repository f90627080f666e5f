"""Which addresses a manifest may send a call to."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.functions.errors import SettingsError
from flashmesh.routing.addresses import Address, AddressRefused, Rules, is_loopback, may_connect, read_address, rules_of

NOTHING_PLAIN = Rules()
CLUSTER = rules_of("10.42.0.0/16, fd00:1::/32", sockets="/run/flash")


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("https://api.runpod.ai/v2/abc", "https://api.runpod.ai", "/v2/abc"),
        ("https://example.com:8443/", "https://example.com:8443", ""),
        ("https://8.8.8.8/x", "https://8.8.8.8", "/x"),
        ("https://[2001:db8::1]:444/x", "https://[2001:db8::1]:444", "/x"),
        ("HTTPS://Example.COM/Path", "https://example.com", "/Path"),
        ("http://127.0.0.1:9000/a/b", "http://127.0.0.1:9000", "/a/b"),
        ("http://127.9.9.9:1", "http://127.9.9.9:1", ""),
        ("http://[::1]:9000", "http://[::1]:9000", ""),
        ("http://localhost:9000", "http://localhost:9000", ""),
        ("http://LocalHost:9000", "http://localhost:9000", ""),
        ("http://gpu.localhost:9000", "http://gpu.localhost:9000", ""),
    ],
)
def test_https_goes_anywhere_and_http_on_this_machine(url: str, origin: str, path: str) -> None:
    found = read_address(url, NOTHING_PLAIN)
    assert (found.origin, found.path) == (origin, path)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "http://10.42.0.7:80",
        "http://0.0.0.0:80",
        "http://[::]:80",
        "http://169.254.169.254/latest/meta-data",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://localhost.:80",
        "http://xlocalhost",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0x7f.0.0.1/",
        "http://0x7f000001/",
        "http://127.0.0.01/",
        "http://127.0.0.1./",
        "http://[::ffff:8.8.8.8]/",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[::1%lo]/",
        "http://user@127.0.0.1/",
        "http://127.0.0.1@example.com/",
        "http://127.0.0.1\\@example.com/",
        "http://127.0.0.1\t/",
        "http://127.0.0.1\r\nHost: x/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:/",
        "http://127.0.0.1:99999/",
        "http://①②⑦.0.0.1/",
        "http:///x",
        "http:127.0.0.1",
        "https://user:secret@example.com",
        "https://example.com/?a=b",
        "https://example.com/#a",
        "https://2130706433/",
        "https://",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "//127.0.0.1",
        "127.0.0.1:80",
        "unix:/run/flash/gpu.sock",
        "",
    ],
)
def test_what_could_leave_the_machine_unprotected_is_refused(url: str) -> None:
    """Numbers in other notations, look-alikes of localhost, users, zone ids, and text two readers read differently."""
    with pytest.raises(AddressRefused) as refused:
        read_address(url, NOTHING_PLAIN)
    assert "secret" not in str(refused.value)


def test_plain_http_goes_to_the_networks_that_local_configuration_names() -> None:
    assert read_address("http://10.42.3.4:8000/x", CLUSTER).ip == IPv4Address("10.42.3.4")
    assert read_address("http://[fd00:1::5]:8000", CLUSTER).host == "fd00:1::5"
    for other in ("http://10.43.0.1", "http://[fd00:2::5]", "http://[::ffff:10.43.0.1]"):
        with pytest.raises(AddressRefused):
            read_address(other, CLUSTER)


def test_a_name_over_plain_http_is_only_called_where_its_addresses_are_allowed() -> None:
    found = read_address("http://gpu.shop.svc.cluster.local:80", CLUSTER)
    assert found.resolved
    assert may_connect(ip_address("10.42.0.9"), CLUSTER)
    assert may_connect(ip_address("::ffff:10.42.0.9"), CLUSTER)
    assert not may_connect(ip_address("93.184.216.34"), CLUSTER)
    assert not read_address("https://gpu.example", CLUSTER).resolved


@pytest.mark.parametrize(
    "url",
    [
        "unix:/run/flash/../docker.sock",
        "unix:/run/flash/x/y.sock",
        "unix:/var/run/docker.sock",
        "unix:gpu.sock",
        "unix:/run/flash/gpu",
        "unix://run/flash/gpu.sock",
        "unix:/run/flash/" + "x" * 120 + ".sock",
        "unix:/run/flash/a\0.sock",
    ],
)
def test_only_sockets_beside_the_endpoints_own_are_called(url: str) -> None:
    with pytest.raises(AddressRefused):
        read_address(url, CLUSTER)
    assert read_address("unix:/run/flash/gpu.sock", CLUSTER) == Address("unix", "/run/flash/gpu.sock")


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "example.com", "8.8.8.0/24", "0.0.0.0/0", "::/0", "10.1.2.3/8", "9.0.0.0/7"]
)
def test_a_network_that_is_none_or_not_private_is_an_error_that_names_the_variable(text: str) -> None:
    with pytest.raises(SettingsError, match="FLASH_PLAIN_NETWORKS"):
        rules_of(text)


hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"),
    st.integers(0, 2**32 - 1).map(str),
    st.integers(0, 2**32 - 1).map(lambda n: ".".join(oct(n >> s & 255).replace("o", "") for s in (24, 16, 8, 0))),
    st.integers(0, 2**32 - 1).map(hex),
    st.sampled_from(
        ["localhost", "a.localhost", "localhost.a", "127.0.0.1.a", "localhost.", "127.1", "::1", "[::1%lo]"]
    ),
    st.text("abc.019x-_:%[]@/\\ \t", max_size=12),
    st.text(max_size=8),
)
urls = st.builds(
    lambda scheme, user, host, port, tail: f"{scheme}{user}{host}{port}{tail}",
    st.sampled_from(["http://", "https://", "HTTP://", "http:", "unix:", "//", ""]),
    st.sampled_from(["", "", "", "u@", "u:p@", "127.0.0.1@", "[::1]@"]),
    hosts,
    st.sampled_from(["", ":80", ":0", ":", ":65536", ":8_0", ":+80", ":٨"]),
    st.one_of(st.sampled_from(["", "/", "/a/b", "?q", "#f", "\\x"]), st.text(max_size=5)),
)
networks = st.lists(st.sampled_from(["10.0.0.0/8", "192.168.1.0/24", "fd00::/8", "100.64.0.0/10"]), max_size=2)


@given(urls, networks)
def test_whatever_the_text_a_plain_call_stays_inside(url: str, plain: list[str]) -> None:
    """Either refused, or TLS, or a host that is loopback or in a named network; and it is the host everybody reads."""
    rules = rules_of(",".join(plain), sockets="/run/flash")
    try:
        found = read_address(url, rules)
    except AddressRefused:
        return
    if found.scheme == "unix":
        assert found.path.startswith("/run/flash/") and found.path.count("/") == 3
        return
    assert urlsplit(url).hostname == found.host or ip_address(urlsplit(url).hostname or "") == found.ip
    assert "@" not in found.origin + found.path
    if found.scheme == "http" and not found.resolved:
        inside = found.ip is not None and any(
            found.ip.version == network.version and found.ip in network
            for network in (ip_network("127.0.0.0/8"), ip_network("::1/128"), *rules.plain)
        )
        mapped = isinstance(found.ip, IPv6Address) and found.ip.ipv4_mapped is not None
        assert inside or (mapped and may_connect(found.ip, rules)) or is_loopback(found)  # type: ignore[arg-type]
    if found.resolved:
        assert plain
    assert read_address(found.origin + found.path, rules).origin == found.origin
