"""Text with a form: addresses, networks, URLs, host names, header names, paths.

Pure checks, each of which says what it expected. Nothing here knows where a
value stands in the configuration, and nothing looks at the machine: whether a
file exists or a port is free is found out by those who use it. `schema` puts
these into sections; `units` has durations, sizes and rates.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from botproxy.config.units import Fault, Refused

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


# Listening addresses


_V6 = r"\[[0-9A-Fa-f:.]{2,45}\]"
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_NAME = rf"{_LABEL}(?:\.{_LABEL})*\.?"
_ADDRESS = re.compile(rf"({_V6}|{_NAME}|):([0-9]{{1,5}})")
_INHERITED = re.compile(r"fd:[0-9]{1,4}|systemd(?::[A-Za-z0-9_.-]{1,64})?")
ADDRESS_PATTERN = f"^(?:{_ADDRESS.pattern}|{_INHERITED.pattern})$"
ADDRESS_EXPECTED = 'an address like ":443", "127.0.0.1:8443", "[::]:443", "fd:3", "systemd" or "systemd:NAME"'


def listen_address(value: object) -> str:
    """The address, checked."""
    if isinstance(value, str):
        if _INHERITED.fullmatch(value):
            return value
        match = _ADDRESS.fullmatch(value)
        if match and int(match[2]) <= 65535 and _is_host(match[1]):
            return value
    raise Refused(Fault(ADDRESS_EXPECTED, hint=address_hint(value)))


def address_hint(value: object) -> str | None:
    """What somebody who wrote `value` for a listening address probably meant."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    if match := re.fullmatch(r":?([0-9]{1,5})(:[0-9]{1,5})?", text):
        if int(match[1]) > 65535:
            return "ports go up to 65535"
        mapping = "this is no port mapping; write the port alone:" if match[2] else "write"
        return f'{mapping} ":{match[1]}"'
    if re.fullmatch(rf"{_NAME}|{_V6}", text):
        return f'add the port: "{text}:443"'
    return None


def split_address(value: str) -> tuple[str, int]:
    """Host (empty: every address) and port of a checked listen address that is not inherited."""
    match = _ADDRESS.fullmatch(value)
    if match is None:
        raise ValueError(f"{value!r} has no host and port")
    return match[1].strip("[]"), int(match[2])


def endpoints(value: str) -> set[tuple[str, int]]:
    """What a checked listen address binds, comparable; an inherited socket stands for itself."""
    if _INHERITED.fullmatch(value):
        return {(value, 0)}
    host, port = split_address(value)
    return {(each, port) for each in _spellings(host)} if port else set()


def _spellings(host: str) -> list[str]:
    if host == "":
        return ["0.0.0.0", "::"]
    if host.lower() == "localhost":
        return ["127.0.0.1", "::1"]
    return [str(ipaddress.ip_address(host)) if _is_ip(host) else host.lower().removesuffix(".")]


def _is_host(host: str) -> bool:
    """Whether `host` can be one: brackets hold IPv6, digits and dots alone are IPv4 in full."""
    if host.startswith("["):
        return ":" in host and _is_ip(host.strip("[]"))
    return _is_ip(host) if re.fullmatch(r"[0-9.]+", host) else True


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# Networks


def network(value: object) -> Network:
    """A network in CIDR notation, or a single address."""
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    hint = None
    if isinstance(value, str):
        try:
            loose = ipaddress.ip_network(value, strict=False)
            if loose.network_address == ipaddress.ip_interface(value).ip:
                return loose
            hint = f'write "{loose}"'
        except ValueError:
            pass
    raise Refused(Fault('a network like "10.0.0.0/8" or an address', hint=hint))


def trusted_network(value: object) -> Network:
    """As `network`, but not the whole internet, which would let every client say who it is."""
    trusted = network(value)
    if trusted.prefixlen == 0:
        raise Refused(Fault("the networks of your own proxies", found="every address there is"))
    return trusted


# Upstreams


@dataclass(frozen=True, slots=True)
class Target:
    """A checked upstream address."""

    scheme: Literal["http", "https", "unix"]
    host: str
    """Host name or address; empty for a Unix socket."""
    port: int
    path: str = ""
    """Path of the Unix socket."""

    def __str__(self) -> str:
        if self.scheme == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def endpoints(self) -> set[tuple[str, int]]:
        """What connecting may reach on this machine, comparable with those of a listen address."""
        if self.scheme == "unix":
            return set()
        reached: set[str] = set()
        for host in _spellings(self.host):
            reached.add(host)
            address = ipaddress.ip_address(host) if _is_ip(host) else None
            if address and address.is_loopback:
                reached.add("0.0.0.0" if address.version == 4 else "::")
            elif address and address.is_unspecified:
                reached.add("127.0.0.1" if address.version == 4 else "::1")
        return {(host, self.port) for host in reached}


URL = re.compile(rf"(https?)://({_V6}|{_NAME})(?::([0-9]{{1,5}}))?/?")
SOCKET = re.compile(r"unix:(/[!-~]{1,106})")
_URL_EXPECTED = '"http://host:port", "https://host:port" or "unix:/path/to.sock"'


def parse_target(url: str) -> Target:
    """The address in an upstream `url`; raises Refused."""
    if match := SOCKET.fullmatch(url):
        return Target(scheme="unix", host="", port=0, path=match[1])
    match = URL.fullmatch(url)
    if match is None or not _is_host(match[2]):
        raise Refused(Fault(_URL_EXPECTED, hint=_url_hint(url)))
    scheme: Literal["http", "https"] = "https" if match[1] == "https" else "http"
    port = int(match[3]) if match[3] is not None else {"http": 80, "https": 443}[scheme]
    if not 1 <= port <= 65535:
        raise Refused(Fault(f"{_URL_EXPECTED}, with a port from 1 to 65535"))
    return Target(scheme=scheme, host=match[2].strip("[]").lower().removesuffix("."), port=port)


def _url_hint(url: str) -> str | None:
    if re.match(rf"https?://(?:{_V6}|{_NAME})(?::[0-9]+)?[/?#].", url):
        return "leave out everything behind the port: the request's own path is sent"
    if re.match(r"https?://[^/]*@", url):
        return "leave out user and password: the request's own credentials are sent"
    if re.match(r"unix:(?!/)", url):
        return "the path of the socket begins at the root"
    if re.match(r"(?!https?:)[a-z]+://", url):
        return "WebSocket requests arrive over http:// too" if url.startswith("ws") else None
    return None if "://" in url else "put http:// before host and port"


def checked_url(value: str) -> str:
    parse_target(value)
    return value


# Names


_HOST = re.compile(
    r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*|\[[0-9a-f:.]+\]"
)
HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
UPSTREAM_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
# Printable ASCII but %, ?, # and backslash; no empty and no dot segments.
ROUTE_PATH = re.compile(r"/(?!/|.*//|\.\.?(?:/|$)|.*/\.\.?(?:/|$))[!\x22$&->@-\[\]-~]*")
_CONNECTION_HEADERS = {
    "connection",
    "content-length",
    "transfer-encoding",
    "keep-alive",
    "upgrade",
    "trailer",
    "te",
    "date",
}


def route_host(value: str) -> str:
    """The host in lower case, checked."""
    lowered = value.lower().removesuffix(".")
    if not value.isascii() or not _HOST.fullmatch(lowered):
        raise Refused(
            Fault('a host name like "bot.example.com", without scheme and port', hint=_host_hint(value))
        )
    return lowered


def _host_hint(value: str) -> str | None:
    if value == "*":
        return "leave `hosts` out for every host"
    if not value.isascii():
        return "write the form that begins with xn--"
    match = re.fullmatch(rf"(?:[a-z]+://)?({_NAME})(?::[0-9]+)?(?:/.*)?", value)
    return f'write "{match[1]}"' if match else None


def route_path(value: str) -> str:
    """The path, checked."""
    if not ROUTE_PATH.fullmatch(value):
        raise Refused(
            Fault('a path like "/telegram": from the root, without %, ?, #, backslash, "//" or dot segments')
        )
    return value


def upstream_name(value: str) -> str:
    """The name, checked."""
    if not UPSTREAM_NAME.fullmatch(value):
        raise Refused(Fault('a name of letters, digits, "_", "-" and "."'))
    return value


def header_name(value: str) -> str:
    """The name of a response header, checked."""
    if not HEADER_NAME.fullmatch(value):
        raise Refused(Fault('a header name of letters, digits and "-"'))
    if value.lower() in _CONNECTION_HEADERS:
        raise Refused(Fault("a header of the response", found="one that belongs to the connection"))
    if value.lower() == "strict-transport-security":
        raise Refused(Fault("a header that botproxy does not set itself", hint="use `headers.hsts`"))
    return value


def header_value(value: str) -> str:
    if not re.fullmatch(r"(?:[!-~](?:[\t -~]*[!-~])?)?", value):
        raise Refused(Fault("printable ASCII without spaces around it"))
    return value


def account(value: str) -> str:
    if not ACCOUNT.fullmatch(value):
        raise Refused(Fault('the name of an account like "botproxy"'))
    if value == "root":
        raise Refused(
            Fault(
                "an account without privileges",
                hint="started as root, botproxy binds its ports and becomes this account",
            )
        )
    return value


def file_name(value: str) -> str:
    if "-----BEGIN" in value:
        raise Refused(Fault("the name of a PEM file", found="the PEM text itself"))
    if not value or re.search(r"[\x00-\x1f\x7f]", value):
        raise Refused(Fault("the name of a file"))
    return value


def workers(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 64):
        return value
    number = isinstance(value, str) and re.fullmatch(r"[1-9]|[1-5][0-9]|6[0-4]", value)
    hint = f"write {value}, without quotes" if number else None
    raise Refused(Fault('"auto" or a number from 1 to 64', hint=hint))


def admin_socket(value: object) -> str:
    if value is False:  # YAML 1.1 reads a bare `off` so
        return "off"
    if isinstance(value, str) and (value == "off" or SOCKET.fullmatch(value)):
        return value
    path = isinstance(value, str) and SOCKET.fullmatch(f"unix:{value}")
    raise Refused(Fault('"unix:/path/to.sock" or "off"', hint=f'write "unix:{value}"' if path else None))
