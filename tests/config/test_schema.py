"""The schema as a whole: contradictions, what the files in `configs/` and the editors are told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path as FilePath
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from botproxy.config.keys import is_file, is_secret, meaning, names_at
from botproxy.config.load import load_file
from botproxy.config.schema import Config
from botproxy.config.schema_file import FILE, schema_json
from botproxy.config.units import Path

ROOT = FilePath(__file__).parent.parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
FULL = ROOT / "configs" / "full.yaml"
PAIR = {"chain": "c.pem", "key": "k.pem"}
SCHEMA = json.loads(schema_json())


def config(**values: Any) -> Config:
    return Config.model_validate({"certificates": [PAIR]} | values)


def refused(**values: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        config(**values)
    return str(caught.value)


# Contradictions


@pytest.mark.parametrize(
    "values",
    [
        {"listen": [":443", "0.0.0.0:443"]},
        {"listen": ["fd:3"], "plain_listen": ["fd:3"]},
        {"plain_listen": [":80", ":80"]},
        {"listen": [":80"]},
    ],
)
def test_an_address_is_listened_on_once(values: dict[str, Any]) -> None:
    assert "expected each address once" in refused(**values)


def test_two_listeners_may_have_any_free_port() -> None:
    assert len(config(listen=[":0", ":0"], plain_listen=[":0"]).listen) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"listen": [":8000"]},
        {"plain_listen": ["127.0.0.1:8000"]},
        {"upstreams": {"bot": {"url": "https://localhost"}}},
        {"upstreams": {"bot": {"url": "http://127.0.0.1"}}},
    ],
)
def test_the_bot_is_not_botproxy_itself(values: dict[str, Any]) -> None:
    assert "expected the address of the bot" in refused(**values)


def test_a_route_leads_to_an_upstream_that_exists() -> None:
    text = refused(routes=[{"path": "/a", "upstream": "bto"}])
    assert 'expected one of the upstreams bot, found "bto"' in text


def test_the_default_route_needs_a_name_where_there_are_several_upstreams() -> None:
    two = {"a": {"url": "http://a"}, "b": {"url": "http://b"}}
    assert "expected one of the upstreams a, b, found none named" in refused(upstreams=two)
    assert config(upstreams=two, routes=[{"upstream": "b"}]).routes[0].upstream == "b"


@pytest.mark.parametrize(
    ("routes", "fine"),
    [
        ([{}, {"path": "/a"}], False),
        ([{"path": "/a"}, {"path": "/a/b"}], False),
        ([{"path": "/a/"}, {"path": "/a"}], False),
        ([{"hosts": ["a", "b"]}, {"hosts": ["b"], "path": "/x"}], False),
        ([{"path": "/a"}, {}], True),
        ([{"path": "/a"}, {"path": "/ab"}], True),
        ([{"hosts": ["a"]}, {}], True),
        ([{"hosts": ["a"]}, {"hosts": ["a", "b"]}], True),
    ],
)
def test_a_route_that_no_request_can_reach_is_refused(routes: list[dict[str, Any]], fine: bool) -> None:
    if fine:
        assert len(config(routes=routes).routes) == 2
    else:
        assert "a route that some request can reach" in refused(routes=routes)


def test_a_ca_is_only_for_https() -> None:
    assert "expected a `url` that begins with https://" in refused(
        upstreams={"bot": {"url": "http://a", "ca": "ca.pem"}}
    )
    assert config(upstreams={"bot": {"url": "https://a", "ca": "ca.pem"}}).upstreams["bot"].ca == "ca.pem"


def test_acme_files_need_a_clear_text_listener() -> None:
    assert "expected an address in `plain_listen`" in refused(acme_webroot="/w", plain_listen=[])


def test_a_header_is_set_once_whatever_its_case() -> None:
    assert "expected each header once" in refused(headers={"set": {"X-A": "1", "x-a": "2"}})


# Short forms, and values that look alike


@pytest.mark.parametrize(
    ("short", "enabled"),
    [("off", False), (False, False), ("on", True), (True, True), ({"max_age": "1d"}, True)],
)
def test_hsts_has_a_short_form(short: object, enabled: bool) -> None:
    assert config(headers={"hsts": short}).headers.hsts.enabled is enabled


@pytest.mark.parametrize("value", [0, 1, "no", None, [], 0.0])
def test_what_equals_true_or_false_is_no_short_form(value: object) -> None:
    assert 'expected "on", "off" or a mapping' in refused(headers={"hsts": value})


@pytest.mark.parametrize(
    "values",
    [
        {"limits": {"fields": "100"}},
        {"limits": {"fields": True}},
        {"limits": {"fields": 1.0}},
        {"limits": {"fields": 0}},
        {"limits": {"head": 1023}},
        {"limits": {"body": 0}},
        {"timeouts": {"handshake": 0}},
        {"timeouts": {"head": 30}},
        {"tls": {"strict_sni": 1}},
        {"tls": {"strict_sni": "yes"}},
        {"tls": {"min_version": "1.1"}},
        {"listen": []},
        {"routes": []},
        {"upstreams": {}},
        {"certificates": []},
        {"workers": 0},
        {"unknown": 1},
        {"trusted_proxies": ["0.0.0.0/0"]},
        {"user": "root"},
    ],
)
def test_nothing_is_bent_to_fit(values: dict[str, Any]) -> None:
    assert refused(**values)


def test_an_error_does_not_show_what_was_given() -> None:
    assert "hunter2" not in refused(certificates=[{"chain": "c", "key": "k", "password": "hunter2"}])


# What is known about keys


def test_whatever_may_hold_a_secret_is_known() -> None:
    shown = [
        ("listen", 0),
        ("workers",),
        ("limits", "head"),
        ("routes", 0, "hosts", 0),
        ("tls", "min_version"),
    ]
    hidden = [
        ("certificates", 0, "key"),
        ("certificates", 0),
        ("certificates",),
        ("upstreams", "bot", "url"),
        ("upstreams", "bot"),
        ("routes", 0, "path"),
        ("headers", "set", "X-Token"),
        ("nobody", "knows", "this"),
    ]
    assert [path for path in shown if is_secret(path)] == []
    assert [path for path in hidden if not is_secret(path)] == []


def test_whatever_names_a_file_is_known() -> None:
    files = {path for path in key_paths() if is_file(path)}
    assert files == {
        ("acme_webroot",),
        ("state_dir",),
        ("certificates", 0, "chain"),
        ("certificates", 0, "key"),
        ("certificates", 0, "password_file"),
        ("upstreams", "bot", "ca"),
    }


def test_every_key_says_what_it_is_for() -> None:
    assert [path for path in key_paths() if path[-1] != "bot" and not meaning(path)] == []


def key_paths(path: Path = ()) -> Iterator[Path]:
    """Every key below `path` in the order of the schema, with one entry in each list and mapping."""
    for key in names_at(path):
        here = (*path, key)
        yield here
        yield from key_paths(here)
        yield from key_paths((*here, 0))
        if names_at(named := (*here, "bot")):
            yield named
            yield from key_paths(named)


# configs/full.yaml


def written_paths(value: object, around: Path = ()) -> Iterator[Path]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield (*around, key)
            yield from written_paths(each, (*around, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from written_paths(each, (*around, index))


def test_the_full_file_has_every_key_in_the_order_of_the_schema() -> None:
    assert list(written_paths(yaml.safe_load(FULL.read_text()))) == list(key_paths())


def test_the_full_file_has_the_defaults() -> None:
    loaded = load_file(str(FULL))
    assert loaded == Config(certificates=loaded.certificates)
    assert loaded.certificates[0].password_file is None
    assert len(loaded.certificates) == len(loaded.upstreams) == len(loaded.routes) == 1


def test_every_key_of_the_full_file_is_introduced_by_a_comment() -> None:
    lines = FULL.read_text().splitlines()
    keys = [number for number, line in enumerate(lines) if re.match(r" *(- )?[a-z_]+:", line)]
    alone = [lines[number] for number in keys if not lines[number - 1].lstrip().startswith("#")]
    # One bot, under a comment that speaks of all of them.
    assert alone == ["  bot:"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_editors_find_the_schema_from_the_first_line(path: FilePath) -> None:
    first = path.read_text().splitlines()[0]
    _, _, relative = first.partition("# yaml-language-server: $schema=")
    assert (path.parent / relative).resolve() == FILE


# The JSON Schema


def test_the_shipped_schema_is_the_current_one() -> None:
    assert FILE.read_text(encoding="utf-8") == schema_json(), "the schema changed; run: make schema"


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_are_valid_for_editors_and_for_us(path: FilePath) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), SCHEMA)
    load_file(str(path))


def test_the_example_for_nginx_is_the_default_but_for_its_name_and_certificate() -> None:
    loaded = load_file(str(ROOT / "configs" / "nginx-example.yaml"))
    expected = Config(
        user="www-data", certificates=loaded.certificates, routes=loaded.routes, upstreams=loaded.upstreams
    )
    assert loaded == expected
    assert loaded.routes[0].hosts == ("bot.example.com",)
    assert loaded.upstreams["bot"].url == "http://localhost:8000"


@pytest.mark.parametrize(
    ("values", "valid"),
    [
        ({}, True),
        ({"listen": [":443", {"address": "[::]:8443", "proxy_protocol_from": ["10.0.0.0/8"]}, "fd:3"]}, True),
        ({"listen": [443]}, False),
        ({"listen": ":443"}, False),
        ({"listen": ["443"]}, False),
        ({"workers": 2}, True),
        ({"workers": "2"}, False),
        ({"headers": {"hsts": "off"}}, True),
        ({"headers": {"hsts": False}}, True),
        ({"headers": {"hsts": "no"}}, False),
        ({"headers": {"hsts": {"max_age": "1d"}}}, True),
        ({"headers": {"set": {"X-A": "b"}}}, True),
        ({"headers": {"set": {"X A": "b"}}}, False),
        ({"log": {"access": False}}, True),
        ({"log": {"access": "off"}}, True),
        ({"log": {"access": "text"}}, False),
        ({"admin": "off"}, True),
        ({"admin": "unix:/run/x.sock"}, True),
        ({"admin": None}, True),
        ({"admin": "x"}, False),
        ({"timeouts": {"response": 0}}, True),
        ({"timeouts": {"head": "30s"}}, True),
        ({"timeouts": {"head": 0}}, False),
        ({"timeouts": {"head": "0s"}}, False),
        ({"timeouts": {"head": 30}}, False),
        ({"limits": {"body": "1GiB", "head": 2048, "rate": {"total": "5/s"}}}, True),
        ({"limits": {"body": "1GB"}}, False),
        ({"limits": {"fields": "1"}}, False),
        ({"routes": [{"path": '/a;b"c'}]}, True),
        ({"routes": [{"path": "/a//b"}]}, False),
        ({"routes": [{"path": "/a%b"}]}, False),
        ({"upstreams": {"bot": {"url": "unix:/run/x"}}}, True),
        ({"upstreams": {"bot": {"url": "localhost"}}}, False),
        ({"upstreams": {"b d": {"url": "http://x"}}}, False),
        ({"certificates": []}, False),
        ({"listn": []}, False),
    ],
)
def test_editors_and_we_agree(values: dict[str, Any], valid: bool) -> None:
    """As far as an editor can know: contradictions and a few bounds are found only by us."""
    document = {"certificates": [PAIR]} | values
    assert jsonschema.Draft202012Validator(SCHEMA).is_valid(document) is valid
    if valid:
        config(**values)
    else:
        refused(**values)


def test_defaults_told_to_editors_can_be_written() -> None:
    """A default is what an editor offers; each must be valid where it stands."""

    def check(schema: dict[str, Any]) -> int:
        checked = 0
        for key, each in schema.get("properties", {}).items():
            if "default" in each:
                full = {"$defs": SCHEMA["$defs"], **each}
                assert jsonschema.Draft202012Validator(full).is_valid(each["default"]), key
                checked += 1
        return checked + sum(check(each) for each in schema.get("anyOf", []))

    assert check(SCHEMA) + sum(check(each) for each in SCHEMA["$defs"].values()) > 50
