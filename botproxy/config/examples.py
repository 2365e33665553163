"""A line for every key that can be copied into a configuration and is right.

The last resort of `explain`: whoever got a value wrong, and gave no clue how it
was meant, reads at least how one looks. The default where there is one, else a
line from the table. Never shows what somebody wrote.
"""

from __future__ import annotations

import json
import re
from typing import Final

from botproxy.config.keys import section_at
from botproxy.config.schema import Section
from botproxy.config.units import Path

_CERTBOT = "/etc/letsencrypt/live/bot.example.com"
_WRITTEN: Final = {
    "listen": '[":443"]',
    "plain_listen": '[":80"]',
    "address": '":443"',
    "proxy_protocol_from": "[10.0.0.0/8]",
    "acme_webroot": "/var/www/acme",
    "user": "botproxy",
    "state_dir": "/var/lib/botproxy",
    "certificates": f"[{{chain: {_CERTBOT}/fullchain.pem, key: {_CERTBOT}/privkey.pem}}]",
    "chain": f"{_CERTBOT}/fullchain.pem",
    "key": f"{_CERTBOT}/privkey.pem",
    "password_file": "/etc/botproxy/password",
    "name": "bot.example.com",
    "upstreams": '{bot: {url: "http://127.0.0.1:8000"}}',
    "url": '"http://127.0.0.1:8000"',
    "ca": "/etc/botproxy/ca.pem",
    "routes": "[{hosts: [bot.example.com], path: /}]",
    "hosts": "[bot.example.com]",
    "upstream": "bot",
    "rate": "{per_address: 20/s}",
    "per_address": "20/s",
    "total": "200/s",
    "watch": "{poll: 10s}",
    "tls": '{min_version: "1.2"}',
    "headers": "{preset: api}",
    "hsts": "{max_age: 365d}",
    "set": "{X-Robots-Tag: noindex}",
    "limits": "{body: 32MiB}",
    "timeouts": "{response: 60s}",
    "trusted_proxies": "[10.0.0.0/8]",
    "log": "{level: info}",
    "admin": "unix:/run/botproxy/admin.sock",
}
"""Of keys without a default, or with one that tells nothing."""


def example(path: Path) -> str:
    """`key: value` for the key at `path`, or for the nearest one around it that the schema knows."""
    for length in range(len(path), 0, -1):
        section, key = section_at(path[: length - 1]), path[length - 1]
        if section and key in section.model_fields:
            return f"{key}: {_WRITTEN.get(str(key)) or _default(section, str(key))}"
    return f"certificates: {_WRITTEN['certificates']}"


def _default(section: type[Section], key: str) -> str:
    value = section.model_construct().model_dump(mode="json", include={key})[key]
    if isinstance(value, str) and re.fullmatch(r"/|[a-z]+|[0-9]+[A-Za-z]+", value):
        return value
    return json.dumps(value)
