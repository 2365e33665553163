"""The types that a key of the configuration may have: how its text is read, written, and known to editors.

Each joins a check of `units` or `values` with what the validation library wants to know.
The marks say what else is true of a value. `schema` puts them into sections.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

from botproxy.config.units import (
    DURATION,
    RATE,
    SIZE,
    duration,
    duration_or_unlimited,
    duration_or_zero,
    duration_text,
    rate,
    rate_text,
    size,
    size_between,
    size_text,
)
from botproxy.config.values import (
    ACCOUNT,
    ADDRESS_PATTERN,
    HEADER_NAME,
    ROUTE_PATH,
    SOCKET,
    UPSTREAM_NAME,
    URL,
    Network,
    account,
    admin_socket,
    checked_url,
    file_name,
    header_name,
    header_value,
    listen_address,
    network,
    route_host,
    route_path,
    trusted_network,
    upstream_name,
    workers,
)


class Mark(Enum):
    """What `config.load` must know about a field beyond its type."""

    SECRET = "never shown in an error: it may hold a token, or a password pasted into the wrong key"
    FILE = "a file or directory, relative to the one that names it"


def _text(pattern: str) -> dict[str, object]:
    return {"type": "string", "pattern": f"^{pattern}$"}


def _named(pattern: str) -> WithJsonSchema:
    return WithJsonSchema(_text(f"(?:{pattern})"))


# Durations, sizes, rates

_SIZE_SCHEMA = {"anyOf": [_text(SIZE.pattern), {"type": "integer", "minimum": 0}]}

Duration = Annotated[
    float,
    BeforeValidator(duration),
    PlainSerializer(duration_text),
    WithJsonSchema(_text(rf"(?=.*[1-9]){DURATION.pattern}")),
]
"""Seconds, above zero; written with a unit."""

DurationOrZero = Annotated[
    float,
    BeforeValidator(duration_or_zero),
    PlainSerializer(duration_text),
    WithJsonSchema({"anyOf": [_text(DURATION.pattern), {"const": 0}]}),
]
"""Seconds, or 0 where the key says what 0 means; written with a unit."""

DurationOrUnlimited = Annotated[
    float,
    BeforeValidator(duration_or_unlimited),
    PlainSerializer(duration_text),
    WithJsonSchema({"anyOf": [_text(DURATION.pattern), {"enum": [0, "unlimited"]}]}),
]
"""Seconds, infinity for `unlimited`; written with a unit."""

Size = Annotated[int, BeforeValidator(size), PlainSerializer(size_text), WithJsonSchema(_SIZE_SCHEMA)]
"""Bytes; written with a binary unit or as a whole number."""

HeadSize = Annotated[
    int,
    BeforeValidator(size_between(1024, 1024**2)),
    PlainSerializer(size_text),
    WithJsonSchema(_SIZE_SCHEMA),
]
"""Bytes of something held in memory for each connection: 1 KiB to 1 MiB."""

BodySize = Annotated[
    int, BeforeValidator(size_between(1)), PlainSerializer(size_text), WithJsonSchema(_SIZE_SCHEMA)
]
"""Bytes of something that streams; a limit of zero would refuse all of it, and is no "unlimited"."""

WorkerMemory = Annotated[
    int,
    BeforeValidator(size_between(64 * 1024**2)),
    PlainSerializer(size_text),
    WithJsonSchema(_SIZE_SCHEMA),
]
"""Bytes of a whole process, which needs some 40 MiB to begin with."""

Rate = Annotated[
    float, BeforeValidator(rate), PlainSerializer(rate_text), WithJsonSchema(_text(RATE.pattern))
]
"""Events per second; written with the span it counts over."""


# Text with a form

Cidr = Annotated[Network, BeforeValidator(network), PlainSerializer(str), WithJsonSchema({"type": "string"})]
TrustedCidr = Annotated[
    Network, BeforeValidator(trusted_network), PlainSerializer(str), WithJsonSchema({"type": "string"})
]
Address = Annotated[
    str, BeforeValidator(listen_address), WithJsonSchema({"type": "string", "pattern": ADDRESS_PATTERN})
]
Url = Annotated[str, AfterValidator(checked_url), _named(f"{URL.pattern}|{SOCKET.pattern}"), Mark.SECRET]
Host = Annotated[str, AfterValidator(route_host), _named(r"[!-~]+")]
RoutePath = Annotated[str, AfterValidator(route_path), _named(ROUTE_PATH.pattern), Mark.SECRET]
UpstreamName = Annotated[str, AfterValidator(upstream_name), _named(UPSTREAM_NAME.pattern)]
CertificateName = Annotated[str, AfterValidator(upstream_name), _named(UPSTREAM_NAME.pattern)]
HeaderName = Annotated[str, AfterValidator(header_name), _named(HEADER_NAME.pattern)]
HeaderValue = Annotated[str, AfterValidator(header_value), Mark.SECRET]
Account = Annotated[str, AfterValidator(account), _named(ACCOUNT.pattern)]
FileName = Annotated[str, AfterValidator(file_name), Mark.SECRET, Mark.FILE]
AdminSocket = Annotated[
    str,
    BeforeValidator(admin_socket),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "pattern": f"^{SOCKET.pattern}$"}, {"enum": ["off", False]}]}
    ),
]
Workers = Annotated[
    Literal["auto"] | int,
    BeforeValidator(workers),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": 64}]}),
]
