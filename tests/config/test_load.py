"""Loading: everything wrong is told at once, in the order of the file, in our words, without secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from botproxy.config.keys import names_at
from botproxy.config.load import draft, load_file, load_options
from botproxy.config.schema import Config, Limits, Timeouts
from botproxy.errors import ConfigError, Problem

PAIR = {"certificates": [{"chain": "/c.pem", "key": "/k.pem"}]}
MINIMAL = "certificates: [{chain: c.pem, key: k.pem}]\n"

MISTAKES = r"""
listn: [":1"]
listen: 443
plain_listen: [80, "8000:80", ":http"]
workers: "4"
user: root
certificates:
  - chain: |
      -----BEGIN CERTIFICATE-----
    key: 5
    password: hunter2
  - {}
tls: {min_version: 1.3, strict_sni: "yes"}
upstreams:
  bot: {url: "localhost:8000/hunter2", hold: 30, reuse: no}
  "b d": {url: "http://u:hunter2@host:1"}
  hunter: "http://hunter2"
routes:
  - {hosts: ["https://bot.example.com/", "*"], path: bot/hunter2, upstream: bot}
  - {rate: {per_address: 20r/s, burst: 0}}
  -
headers:
  hsts: 1
  set: {"X Y": hunter2, Connection: hunter2, X-A: "hunter2\n"}
  preset: wep
limits: {head: 10, fields: 1_000, body: 32MB}
limits: {}
timeouts:
  head: 30 sec
  connect: 0
  tunnel: 1:30
  respnse: 3s
trusted_proxies: [10.0.0.1/8, 0.0.0.0/0, "\e[31mx"]
443: hunter2
log: {access: no, level: yes}
admin: /run/x.sock
state_dir: !env hunter2
acme_webroot: *hunter2
"""

ADDRESS = 'an address like ":443", "127.0.0.1:8443", "[::]:443", "fd:3", "systemd" or "systemd:NAME"'
DURATION = 'a duration like "30s" (units: ms, s, m, h, d)'
URL = '"http://host:port", "https://host:port" or "unix:/path/to.sock"'
HOST = 'a host name like "bot.example.com", without scheme and port'
NETWORK = 'a network like "10.0.0.0/8" or an address'

TOLD = f"""
2: listn: expected a known key, found "listn" | did you mean "listen"?
3: listen: expected a list of addresses like [":443"], found 443 | write [":443"]
4: plain_listen[0]: expected {ADDRESS}, found 80 | write ":80"
4: plain_listen[1]: expected {ADDRESS}, found "8000:80" | this is no port mapping; write the port alone: ":8000"
4: plain_listen[2]: expected {ADDRESS}, found ":http" | for example: plain_listen: [":80"]
5: workers: expected "auto" or a number from 1 to 64, found "4" | write 4, without quotes
6: user: expected an account without privileges, found "root" | started as root, botproxy binds its ports and becomes this account
8: certificates[0].chain: expected the name of a PEM file, found the PEM text itself | for example: chain: /etc/letsencrypt/live/bot.example.com/fullchain.pem
10: certificates[0].key: expected text, found a number | for example: key: /etc/letsencrypt/live/bot.example.com/privkey.pem
11: certificates[0].password: expected a known key, found "password" | did you mean "password_file"?
12: certificates[1].chain: expected this key, found nothing | PEM file: the certificate, then its intermediates (certbot's `fullchain.pem`)
12: certificates[1].key: expected this key, found nothing | PEM file: the private key
13: tls.min_version: expected "1.2" or "1.3", found 1.3 | write it in quotes: "1.3"
13: tls.strict_sni: expected true or false, found "yes" | write true, without quotes
15: upstreams.bot.url: expected {URL}, found text (not shown) | put http:// before host and port
15: upstreams.bot.reuse: expected "client", "shared" or "never", found no | YAML reads no as false; for example: reuse: client
15: upstreams.bot.hold: expected {DURATION}, found 30 | write "30s"
16: upstreams.b d: expected a name of letters, digits, "_", "-" and ".", found "b d" | for example: upstreams: {{bot: {{url: "http://127.0.0.1:8000"}}}}
16: upstreams.b d.url: expected {URL}, found text (not shown) | leave out user and password: the request's own credentials are sent
17: upstreams.hunter: expected a mapping, found text (not shown) | its keys are url, reuse, hold, ca
19: routes[0].hosts[0]: expected {HOST}, found "https://bot.example.com/" | write "bot.example.com"
19: routes[0].hosts[1]: expected {HOST}, found "*" | leave `hosts` out for every host
19: routes[0].path: expected a path like "/telegram": from the root, without %, ?, #, backslash, "//" or dot segments, found text (not shown) | for example: path: /
20: routes[1].rate.per_address: expected a rate like "20/s" (units: s, m, h), found "20r/s" | write "20/s"
20: routes[1].rate.burst: expected a whole number of at least 1, found 0 | for example: burst: 20
20: routes[1].upstream: expected one of the upstreams bot, hunter, found none named | name one in the route: `upstream: bot`
21: routes[2]: expected a mapping, found nothing | its keys are hosts, path, upstream, rate
23: headers.hsts: expected "on", "off" or a mapping like {{max_age: 365d}}, found 1 | for example: hsts: {{max_age: 365d}}
24: headers.set.X Y: expected a header name of letters, digits and "-", found "X Y" | for example: set: {{X-Robots-Tag: noindex}}
24: headers.set.Connection: expected a header of the response, found one that belongs to the connection | for example: set: {{X-Robots-Tag: noindex}}
24: headers.set.X-A: expected printable ASCII without spaces around it, found text (not shown) | for example: set: {{X-Robots-Tag: noindex}}
25: headers.preset: expected "api", "web" or "none", found "wep" | did you mean "web"?
26: limits.head: expected a size of at least 1KiB, found 10 | for example: head: 16KiB
26: limits.fields: expected a whole number, found "1_000" | write decimal digits alone, without quotes
26: limits.body: expected a size like "32MiB" (units: B, KiB, MiB, GiB), found "32MB" | write "32MiB"
27: limits: expected each key once, found it again (first on line 26) | remove one of the two
29: timeouts.head: expected {DURATION}, found "30 sec" | write "30s"
30: timeouts.connect: expected a duration above zero like "30s", found 0 | this one cannot be switched off
31: timeouts.tunnel: expected {DURATION}, found "1:30" | for example: tunnel: 1h
32: timeouts.respnse: expected a known key, found "respnse" | did you mean "response"?
33: trusted_proxies[0]: expected {NETWORK}, found "10.0.0.1/8" | write "10.0.0.0/8"
33: trusted_proxies[1]: expected the networks of your own proxies, found every address there is | for example: trusted_proxies: [10.0.0.0/8]
33: trusted_proxies[2]: expected {NETWORK}, found "\\u001b[31mx" | for example: trusted_proxies: [10.0.0.0/8]
34: expected a key that is text, found 443 | write it in quotes: "443"
35: log.level: expected "debug", "info", "warning" or "error", found yes | YAML reads yes as true; for example: level: info
36: admin: expected "unix:/path/to.sock" or "off", found "/run/x.sock" | write "unix:/run/x.sock"
37: state_dir: expected plain YAML, found a tag | leave out what begins with !
38: acme_webroot: expected the value itself, found an alias | write the value out where the * stands
"""  # noqa: E501


def write(directory: Path, text: str) -> str:
    file = directory / "bot.yaml"
    file.write_text(text)
    return str(file)


def problems(load: Any, *arguments: Any) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(*arguments)
    return caught.value.problems


def told(found: list[Problem], file: str = "") -> list[str]:
    texts = [f"{problem} | {problem.hint}" if problem.hint else str(problem) for problem in found]
    return [text.removeprefix(f"{file}:") for text in texts]


# What is wrong


def test_many_mistakes_are_all_told_in_one_run_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, MISTAKES)
    assert told(problems(load_file, file), file) == sorted(
        TOLD.strip().splitlines(), key=lambda line: int(line.partition(":")[0])
    )


def test_no_secret_is_told_with_them(tmp_path: Path) -> None:
    assert "hunter2" not in repr(problems(load_file, write(tmp_path, MISTAKES)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'listen: [":443",\n  "0.0.0.0:443"]\n',
            (
                "2: listen[1]: expected each address once, found the address of listen[0] again"
                " | remove one of the two"
            ),
        ),
        (
            'plain_listen: [":443"]\n',
            (
                "1: plain_listen[0]: expected each address once, found the address of listen[0] again"
                " | `plain_listen: []` turns it off"
            ),
        ),
        (
            'log: {}\nlisten:\n  - ":80"\n',
            (
                "3: listen[0]: expected each address once, found the address of listen[0] again"
                " | `plain_listen: []` turns it off"
            ),
        ),
        (
            'log: {}\nlisten: [":8000"]\n',
            (
                "2: listen[0]: expected the address of the bot, found an address that listen[0] listens on"
                " | requests would go round in a circle; the bot needs a port of its own"
            ),
        ),
        (
            "upstreams:\n  a:\n    hold: 1s\n    url: https://127.0.0.1\n",
            (
                "4: upstreams.a.url: expected the address of the bot,"
                " found an address that listen[0] listens on"
                " | requests would go round in a circle; the bot needs a port of its own"
            ),
        ),
        (
            "upstreams: {\n  a: {url: http://a},\n  b: {url: http://b}}\n",
            (
                "1: upstreams: expected one of the upstreams a, b, found none named"
                " | name one in the route: `upstream: a`"
            ),
        ),
        (
            "routes:\n  - path: /a\n    upstream: bto\n",
            '3: routes[0].upstream: expected one of the upstreams bot, found "bto" | did you mean "bot"?',
        ),
        (
            "routes:\n  - path: /\n  - path: /a\n",
            (
                "3: routes[1]: expected a route that some request can reach, found one behind routes[0],"
                " which takes them all | the first route that fits wins; write the narrower one first"
            ),
        ),
    ],
)
def test_a_contradiction_is_told_where_somebody_wrote_it(tmp_path: Path, text: str, expected: str) -> None:
    file = write(tmp_path, text + MINIMAL)
    assert expected in told(problems(load_file, file), file)


def test_contradictions_are_told_beside_other_mistakes(tmp_path: Path) -> None:
    file = write(tmp_path, '\nlisten: [":1", ":1"]\nworkers: x\nroutes: [{upstream: x}]\nnobody: 1\n')
    paths = [problem.path for problem in problems(load_file, file)]
    assert paths == ["certificates", "listen[1]", "workers", "routes[0].upstream", "nobody"]


def test_several_contradictions_of_one_kind_are_all_told(tmp_path: Path) -> None:
    file = write(
        tmp_path, MINIMAL + "routes: [{path: /a, upstream: x},\n  {path: /b, upstream: y},\n  {path: /b/c}]\n"
    )
    assert [problem.path for problem in problems(load_file, file)] == [
        "routes[0].upstream",
        "routes[1].upstream",
        "routes[2]",
    ]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ('listen: [":443",\n":443",\n"x"]\n', ["listen[1]", "listen[2]"]),
        (
            "routes: [{hosts: ['a b'], upstream: x},\n{path: /a, upstream: y}]\n",
            ["routes[0].hosts[0]", "routes[0].upstream", "routes[1].upstream"],
        ),
        (
            "upstreams: {bot: {url: x}}\nroutes: [{upstream: y}]\n",
            ["upstreams.bot.url", "routes[0].upstream"],
        ),
        ("headers: {set: {X-A: a, x-a: b,\n'X Y': c}}\n", ["headers.set.x-a", "headers.set.X Y"]),
        ("plain_listen: []\nacme_webroot: /w\nlisten: [x]\n", ["acme_webroot", "listen[0]"]),
        ("routes: [{path: /},\n{path: /a},\n{path: a}]\n", ["routes[1]", "routes[2].path"]),
        ("listen: [':8000',\nx]\n", ["listen[0]", "listen[1]"]),
    ],
)
def test_a_mistake_in_one_entry_hides_no_contradiction_of_the_others(
    tmp_path: Path, text: str, paths: list[str]
) -> None:
    found = [problem.path for problem in problems(load_file, write(tmp_path, text + MINIMAL))]
    assert sorted(found) == sorted(paths)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("workers: many", "for example: workers: auto"),
        ("workers: '4'", "write 4, without quotes"),
        ("user: 5", "for example: user: botproxy"),
        ("tls: {min_version: '1.0'}", 'for example: min_version: "1.2"'),
        ("tls: {strict_sni: 1}", "for example: strict_sni: false"),
        ("upstreams: {bot: {url: 'http://a', reuse: always}}", "for example: reuse: client"),
        ("headers: {preset: 7}", "for example: preset: api"),
        ("headers: {override: 7}", "for example: override: false"),
        ("log: {level: loud}", "for example: level: info"),
        ("log: {level: off}", "YAML reads off as false; for example: level: info"),
        ("admin: x", "for example: admin: unix:/run/botproxy/admin.sock"),
        ("limits: {rate: {burst: x}}", "for example: burst: 20"),
        ("plain_listen: 80", 'write [":80"]'),
        ("plain_listen: ':80'", 'write [":80"]'),
        ("listen: ':70000'", "ports go up to 65535"),
        (
            "certificates: []",
            "pairs of `chain` and `key`; the first serves clients that name no host or an unknown one",
        ),
    ],
)
def test_the_hint_says_what_to_write(tmp_path: Path, text: str, hint: str) -> None:
    minimal = "" if text.startswith("certificates") else MINIMAL
    (problem,) = problems(load_file, write(tmp_path, f"{minimal}{text}\n"))
    assert problem.hint == hint


def test_an_unknown_key_without_a_near_one_lists_those_that_are_known(tmp_path: Path) -> None:
    (problem,) = problems(load_file, write(tmp_path, MINIMAL + "log: {xyz: 1}\n"))
    assert problem.hint == "known here: access, level"


def test_nothing_more_is_told_about_a_value_that_could_not_be_read(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "workers: *x\nlimits: !x {head: 1}\nlog: [!x y]\n")
    found = [(problem.path, problem.says.partition(",")[0]) for problem in problems(load_file, file)]
    assert found == [
        ("workers", "expected the value itself"),
        ("limits", "expected plain YAML"),
        ("log[0]", "expected plain YAML"),
        ("log", "expected a mapping"),
    ]


def test_what_is_shown_is_escaped_and_cut(tmp_path: Path) -> None:
    text = (
        MINIMAL
        + 'workers: "\\e]0;x\\a\\u202e\\x7f"\nuser: "'
        + "y" * 5000
        + '"\n"\\n'
        + "k" * 5000
        + '": 1\n'
    )
    for problem in problems(load_file, write(tmp_path, text)):
        assert str(problem).isascii()
        assert str(problem).isprintable()
        assert len(str(problem).removeprefix(str(tmp_path))) < 400


def test_a_short_form_is_blamed_as_it_was_written(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "listen: [x]\nheaders: {hsts: maybe}\n")
    assert [problem.path for problem in problems(load_file, file)] == ["listen[0]", "headers.hsts"]


def scalars() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-5, 70000),
        st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from(["off", "10s", "1MiB", ":443", "http://x", "bot", "/", "root", "", "unix:/x"]),
        st.text(max_size=8),
    )


KEYS = sorted({key for path in [(), *((name,) for name in names_at(()))] for key in names_at(path)})


@settings(max_examples=400)
@given(
    st.dictionaries(
        st.sampled_from(KEYS),
        st.recursive(
            scalars(),
            lambda inside: st.one_of(
                st.lists(inside, max_size=3),
                st.dictionaries(
                    st.sampled_from([*KEYS, "url", "hold", "ca", "path", "hosts", "address", "chain", "bot"]),
                    inside,
                    max_size=4,
                ),
            ),
            max_leaves=12,
        ),
        max_size=5,
    )
)
def test_whatever_is_wrong_is_told_in_our_words(values: dict[str, Any]) -> None:
    """No wording of the validation library leaks, and none of its errors is one we have no words for."""
    try:
        assert isinstance(load_options(values), Config)
    except ConfigError as error:
        for problem in error.problems:
            assert problem.hint
            assert problem.says.startswith("expected ")
            assert ", found " in problem.says
            for foreign in (
                "another value",
                "something else",
                "pydantic",
                "Input",
                "type=",
                "https://errors",
            ):
                assert foreign not in f"{problem.says}{problem.hint}"


# What is right


def test_the_smallest_file_gives_the_defaults(tmp_path: Path) -> None:
    config = load_file(write(tmp_path, MINIMAL))
    assert config == Config(certificates=config.certificates)


def test_file_names_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    acme_webroot: www
    state_dir: /var/lib/x
    certificates: [{chain: ../c.pem, key: ./k.pem, password_file: p}]
    upstreams: {bot: {url: "https://b", ca: ca.pem}, sock: {url: "unix:/run/x"}}
    routes: [{upstream: bot}]
    """
    (tmp_path / "etc").mkdir()
    write(tmp_path / "etc", text)
    monkeypatch.chdir(tmp_path)
    config = load_file("etc/bot.yaml")
    assert (config.acme_webroot, config.state_dir) == (f"{tmp_path}/etc/www", "/var/lib/x")
    certificate = config.certificates[0]
    # `..` stays: what it means where a directory is a link is for the system to say.
    assert certificate.chain == f"{tmp_path}/etc/../c.pem"
    assert (certificate.key, certificate.password_file) == (f"{tmp_path}/etc/k.pem", f"{tmp_path}/etc/p")
    assert config.upstreams["bot"].ca == f"{tmp_path}/etc/ca.pem"
    assert config.upstreams["sock"].url == "unix:/run/x"


def test_a_bare_off_means_off(tmp_path: Path) -> None:
    config = load_file(write(tmp_path, MINIMAL + "headers: {hsts: off}\nlog: {access: off}\nadmin: off\n"))
    assert (config.headers.hsts.enabled, config.log.access, config.admin) == (False, "off", "off")


def test_units_arrive_as_numbers(tmp_path: Path) -> None:
    config = load_file(
        write(
            tmp_path,
            MINIMAL + "limits: {body: 1MiB, rate: {total: 60/m}}\ntimeouts: {head: 1500ms, idle: 0}\n",
        )
    )
    assert (config.limits.body, config.limits.rate.total) == (1024**2, 1.0)
    assert config.timeouts == Timeouts.model_validate({"head": "1500ms", "idle": 0})


# Options


def test_options_alone_make_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_options(
        {
            "certificates": ({"chain": "c.pem", "key": "/k.pem"},),
            "listen": (":8443",),
            "upstreams": {"bot": {"url": "http://localhost:9000"}},
        }
    )
    assert (config.certificates[0].chain, config.certificates[0].key) == (f"{tmp_path}/c.pem", "/k.pem")
    assert config.listen[0].address == ":8443"
    assert config.limits == Limits()


def test_a_mistake_in_an_option_names_the_option() -> None:
    values = {"certificates": [{"chain": "", "key": 1}], "upstreams": {"bot": {"url": "x"}}, "listen": ["x"]}
    origins = {"certificates[0].chain": "--cert", "upstreams.bot.url": "--to", "listen": "--listen"}
    found = {problem.path: problem.where for problem in problems(load_options, values, origins)}
    assert found == {
        "certificates[0].chain": "--cert",
        "certificates[0].key": "command line",
        "upstreams.bot.url": "--to",
        "listen[0]": "--listen",
    }


def test_an_option_without_a_value_is_named_too() -> None:
    values = {"certificates": [{"chain": None, "key": "k.pem"}]}
    (problem,) = problems(load_options, values, {"certificates[0].chain": "--cert"})
    assert str(problem) == "--cert: certificates[0].chain: expected text, found nothing"


def test_without_any_option_the_command_line_is_to_blame() -> None:
    (problem,) = problems(load_options, {})
    assert str(problem) == "command line: certificates: expected this key, found nothing"


def test_options_go_over_the_file_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    text = (
        MINIMAL + 'listen: [":1", ":2"]\nupstreams: {bot: {url: http://a, hold: 1s}}\nlimits: {fields: 7}\n'
    )
    file = write(tmp_path / "etc", text)
    monkeypatch.chdir(tmp_path)
    overrides = {
        "listen": [":3"],
        "upstreams": {"bot": {"url": "https://b", "ca": "ca.pem"}},
        "limits": {"head": "2KiB"},
        "workers": 2,
    }
    config = load_file(file, overrides)
    assert [listen.address for listen in config.listen] == [":3"]
    bot = config.upstreams["bot"]
    assert (bot.url, bot.hold, bot.ca) == ("https://b", 1, f"{tmp_path}/ca.pem")
    assert config.certificates[0].chain == f"{tmp_path}/etc/c.pem"
    assert (config.limits.fields, config.limits.head, config.workers) == (7, 2048, 2)


def test_mistakes_in_options_come_after_those_in_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL + "user: root\ntls: {x: 1}\nlisten: [x, y, z]\n")
    found = problems(
        load_file, file, {"workers": 0, "listen": ["q"]}, {"workers": "--workers", "listen": "--listen"}
    )
    assert [(problem.where.removeprefix(file), problem.path) for problem in found] == [
        (":2", "user"),
        (":3", "tls.x"),
        ("--listen", "listen[0]"),
        ("--workers", "workers"),
    ]


def test_a_list_from_an_option_replaces_a_longer_one_in_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "certificates: [{chain: a, key: a}, {chain: b, key: b}]\n")
    config = load_file(file, PAIR)
    assert [certificate.chain for certificate in config.certificates] == ["/c.pem"]


# Drafts


def test_a_draft_has_what_is_right_and_where_it_stood(tmp_path: Path) -> None:
    text = """workers: many
certificates: [{chain: 5, key: k.pem}, {chain: c.pem, key: k.pem}]
upstreams: {bad: {url: x}, bot: {url: "http://a"}}
acme_webroot: www
"""
    found = draft(file := write(tmp_path, text))
    assert [problem.path for problem in found.problems] == [
        *("workers", "certificates[0].chain", "upstreams.bad.url", "upstreams")
    ]
    assert found.positions == (1,)
    assert found.config.certificates[0].chain == f"{tmp_path}/c.pem"
    assert list(found.config.upstreams) == ["bot"]
    assert (found.config.workers, found.config.acme_webroot) == ("auto", f"{tmp_path}/www")
    assert found.where(("acme_webroot",)) == f"{file}:4"


def test_overrides_are_left_as_they_were(tmp_path: Path) -> None:
    overrides = {"upstreams": {"bot": {"url": "https://b", "ca": "ca.pem"}}}
    before = json.dumps(overrides)
    load_file(write(tmp_path, MINIMAL), overrides)
    load_options(PAIR | overrides)
    assert json.dumps(overrides) == before
