"""The configuration in variables: every key has one, and what is wrong is blamed on it."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import os
import signal
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from botproxy.cli import development, echo_bot
from botproxy.cli.development import Development
from botproxy.config import environment
from botproxy.config.environment import Variable, variables
from botproxy.config.keys import dotted
from botproxy.config.load import draft, load_file, load_options
from botproxy.config.schema import Config
from botproxy.config.units import Path as KeyPath
from botproxy.errors import ConfigError, Problem
from tests.cli.command import botproxy, serving
from tests.config.test_schema import key_paths

FULL = Path(__file__).parents[2] / "configs" / "full.yaml"
PAIR = {"BOTPROXY_CERTIFICATES__0__CHAIN": "/c.pem", "BOTPROXY_CERTIFICATES__0__KEY": "/k.pem"}


def name_of(path: KeyPath) -> str:
    return "BOTPROXY_" + "__".join(str(step).upper() for step in path)


def leaves(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value of a document that holds no others."""
    if isinstance(value, dict | list) and value:
        for step, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*path, step))
    else:
        yield path, value


def prefixes(paths: list[KeyPath]) -> list[KeyPath]:
    return list(dict.fromkeys(path[:length] for path in paths for length in range(1, len(path) + 1)))


LEAVES = dict(leaves(yaml.safe_load(FULL.read_text())))
EVERY = {name_of(path): yaml.safe_dump(value, default_flow_style=True) for path, value in LEAVES.items()}
PATHS = prefixes(list(LEAVES))


def load(environment: Mapping[str, str]) -> Config:
    return load_options({}, {}, environment)


def problems(environment: Mapping[str, str]) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load(environment)
    return caught.value.problems


def write(directory: Path, text: str) -> str:
    file = directory / "bot.yaml"
    file.write_text(text)
    return str(file)


# Every key


def test_every_key_of_the_schema_is_tried() -> None:
    assert set(key_paths()) <= set(PATHS)


def test_all_keys_in_variables_are_the_same_as_all_keys_in_a_file() -> None:
    assert load(EVERY) == load_file(str(FULL))


@pytest.mark.parametrize("path", PATHS, ids=dotted)
def test_every_key_has_a_variable_that_is_blamed_for_its_value(path: KeyPath) -> None:
    name = name_of(path)
    others = {each: text for each, text in EVERY.items() if not f"{each}__".startswith(f"{name}__")}
    found = [(problem.where, problem.path) for problem in problems(others | {name: "[[]]"})]
    assert (name, dotted(path)) in found or (name, f"{dotted(path)}[0]") in found, found


def test_values_are_written_as_in_the_file() -> None:
    config = load(
        PAIR
        | {
            "BOTPROXY_LISTEN": '["127.0.0.1:8443", "[::1]:8443"]',
            "BOTPROXY_WORKERS": "3",
            "BOTPROXY_TIMEOUTS__DRAIN": "8s",
            "BOTPROXY_TLS__STRICT_SNI": "true",
            "BOTPROXY_TLS__MIN_VERSION": '"1.3"',
            "BOTPROXY_HEADERS__HSTS": "off",
            "BOTPROXY_HEADERS__SET": "{X-Robots-Tag: noindex}",
            "BOTPROXY_UPSTREAMS__BOT__URL": "unix:/run/bot.sock",
            "BOTPROXY_ROUTES__0__PATH": "/telegram",
            "BOTPROXY_ROUTES__1__PATH": "/viber",
            "BOTPROXY_TRUSTED_PROXIES__0": "10.0.0.0/8",
            "BOTPROXY_LIMITS__MEMORY": "512MiB",
        }
    )
    assert [listen.address for listen in config.listen] == ["127.0.0.1:8443", "[::1]:8443"]
    assert (config.workers, config.timeouts.drain, config.limits.memory) == (3, 8.0, 512 * 1024**2)
    assert (config.tls.strict_sni, config.tls.min_version, config.headers.hsts.enabled) == (
        True,
        "1.3",
        False,
    )
    assert dict(config.headers.set) == {"X-Robots-Tag": "noindex"}
    assert config.upstreams["bot"].url == "unix:/run/bot.sock"
    assert [route.path for route in config.routes] == ["/telegram", "/viber"]
    assert [str(network) for network in config.trusted_proxies] == ["10.0.0.0/8"]


# One over the other


FILE = """
certificates: [{chain: c.pem, key: k.pem}, {chain: c2.pem, key: k2.pem}]
listen: [":1", ":2"]
plain_listen: [":3"]
timeouts: {drain: 1s, head: 2s}
workers: 1
user: someone
"""


def test_variables_win_over_the_file_and_options_over_both(tmp_path: Path) -> None:
    file = write(tmp_path, FILE)
    given = {"BOTPROXY_TIMEOUTS__DRAIN": "3s", "BOTPROXY_WORKERS": "2", "BOTPROXY_USER": "other"}
    config = load_file(file, {"workers": 4}, {}, given)
    assert (config.timeouts.drain, config.timeouts.head) == (3.0, 2.0)
    assert (config.workers, config.user) == (4, "other")


def test_a_list_is_replaced_as_a_whole_or_entry_by_entry(tmp_path: Path) -> None:
    file = write(tmp_path, FILE)

    def listen(**given: str) -> list[str]:
        return [each.address for each in load_file(file, {}, {}, given).listen]

    assert listen() == [":1", ":2"]
    assert listen(BOTPROXY_LISTEN="[':9']") == [":9"]
    assert listen(BOTPROXY_LISTEN__1=":9") == [":1", ":9"]
    assert listen(BOTPROXY_LISTEN__2=":9") == [":1", ":2", ":9"]
    assert listen(BOTPROXY_LISTEN__1__ADDRESS=":9") == [":1", ":9"]
    assert listen(BOTPROXY_LISTEN__1=":9", BOTPROXY_LISTEN="[':7', ':8']") == [":7", ":9"]
    many = {f"BOTPROXY_LISTEN__{index}": f":{100 + index}" for index in reversed(range(12))}
    assert listen(**many) == [f":{100 + index}" for index in range(12)]


def test_half_an_entry_of_the_file_may_be_replaced(tmp_path: Path) -> None:
    file = write(tmp_path, FILE)
    config = load_file(file, {}, {}, {"BOTPROXY_CERTIFICATES__1__KEY": "/other.pem"})
    assert [(each.chain, each.key) for each in config.certificates] == [
        (f"{tmp_path}/c.pem", f"{tmp_path}/k.pem"),
        (f"{tmp_path}/c2.pem", "/other.pem"),
    ]


def test_file_names_in_variables_begin_at_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    config = load_file(write(tmp_path, FILE), {}, {}, {"BOTPROXY_CERTIFICATES__0__KEY": "k.pem"})
    pair = config.certificates[0]
    assert (pair.chain, pair.key) == (f"{tmp_path}/c.pem", f"{tmp_path}/here/k.pem")


def test_a_mistake_in_the_file_that_a_variable_replaces_is_none(tmp_path: Path) -> None:
    file = write(tmp_path, FILE.replace("1s", "one second"))
    assert load_file(file, {}, {}, {"BOTPROXY_TIMEOUTS__DRAIN": "3s"}).timeouts.drain == 3.0
    with pytest.raises(ConfigError):
        load_file(file, {}, {}, {"BOTPROXY_TIMEOUTS__HEAD": "3s"})


# What is wrong


@pytest.mark.parametrize(
    ("name", "text", "says", "hint"),
    [
        ("LISTN", "x", 'listn: expected a known key, found "listn"', 'did you mean "listen"?'),
        (
            "TIMEOUTS__DRIAN",
            "3s",
            'timeouts.drian: expected a known key, found "drian"',
            'did you mean "drain"?',
        ),
        (
            "TIMEOUTS_DRAIN",
            "3s",
            'timeouts_drain: expected a known key, found "timeouts_drain"',
            'did you mean "timeouts"?',
        ),
        (
            "TIMEOUTS__DRAIN",
            "30",
            'timeouts.drain: expected a duration like "30s" (units: ms, s, m, h, d), found 30',
            'write "30s"',
        ),
        (
            "WORKERS",
            "two",
            'workers: expected "auto" or a number from 1 to 64, found "two"',
            "for example: workers: auto",
        ),
        ("USER", "", "user: ", None),
        (
            "listen",
            ":1",
            "expected a name like BOTPROXY_TIMEOUTS__DRAIN, found another one",
            "write BOTPROXY_LISTEN",
        ),
        (
            "timeouts__drain",
            "1s",
            "expected a name like BOTPROXY_TIMEOUTS__DRAIN, found another one",
            "write BOTPROXY_TIMEOUTS__DRAIN",
        ),
        (
            "TIMEOUTS___DRAIN",
            "1s",
            "expected a name like BOTPROXY_TIMEOUTS__DRAIN, found another one",
            "two underscores are between two levels, only",
        ),
        (
            "LISTEN__1",
            ":1",
            'listen: expected 0, for an entry of a list, found "1"',
            "entries of a list are numbered from 0, without gaps",
        ),
        (
            "CERTIFICATES__FIRST",
            "{chain: c, key: k}",
            'certificates: expected a number from 0 to 1, for an entry of a list, found "first"',
            "entries of a list are numbered from 0, without gaps",
        ),
        (
            "CERTIFICATES__2__CHAIN",
            "c",
            'certificates: expected a number from 0 to 1, for an entry of a list, found "2"',
            "entries of a list are numbered from 0, without gaps",
        ),
        (
            "HEADERS__SET",
            "{X-A: [a",
            (
                "headers.set: expected a value as in the file,"
                " found a [ or { that is never closed, or a missing comma"
            ),
            "close it, and separate entries with commas",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_the_name_of_the_variable(
    name: str, text: str, says: str, hint: str | None
) -> None:
    [problem] = problems(PAIR | {f"BOTPROXY_{name}": text})
    assert str(problem).startswith(f"BOTPROXY_{name}: {says}")
    if hint is not None:
        assert problem.hint == hint


def test_every_mistake_is_told_at_once() -> None:
    given = {
        "BOTPROXY_LISTN": "x",
        "BOTPROXY_WORKERS": "0",
        "BOTPROXY_TIMEOUTS__HEAD": "x",
        "BOTPROXY_x": "1",
    }
    assert {problem.where for problem in problems(PAIR | given)} == set(given)


def test_variables_of_two_files_worth_are_told_apart(tmp_path: Path) -> None:
    found = draft(write(tmp_path, FILE + "log: {level: loud}\n"), {"BOTPROXY_WORKERS": "0"})
    assert [problem.where.rpartition("/")[2] for problem in found.problems] == [
        "bot.yaml:8",
        "BOTPROXY_WORKERS",
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("UPSTREAMS__BOT__URL", "http://u:hunter2@bot:1"),
        ("HEADERS__SET__X-A", "hunter2é"),
        ("HEADERS__SET", "{X-A: [hunter2]}"),
        ("HEADERS__SET", "{X-A: [hunter2"),
        ("HEADERS__SET", "hunter2\x01"),
        ("HEADERS__SET", "!hunter2 x"),
        ("PASSWORD", "hunter2"),
        ("CERTIFICATES__0__PASSWORD", "hunter2"),
        ("ROUTES__0__PATH", "hunter2"),
        ("ROUTES__5__PATH", "hunter2"),
        ("token", "hunter2"),
        ("UPSTREAMS", "hunter2"),
    ],
)
def test_what_may_be_a_secret_is_not_told(name: str, text: str) -> None:
    found = problems(PAIR | {f"BOTPROXY_{name}": text})
    assert f"BOTPROXY_{name}" in [problem.where for problem in found]
    assert "hunter2" not in repr(found)


# What is no key


def test_what_is_not_ours_is_not_looked_at() -> None:
    assert variables({"PATH": "/bin", "XBOTPROXY_USER": "x", "BOTPROXY": "x", "BOTPROXYUSER": "x"}) == []


def test_the_file_and_what_a_predecessor_says_are_no_keys() -> None:
    assert variables({"BOTPROXY_CONFIG": "/a.yaml", "BOTPROXY_INHERITED": "{}"}) == []
    assert environment.file({"BOTPROXY_CONFIG": "/a.yaml"}) == "/a.yaml"
    assert environment.file({"BOTPROXY_CONFIG": ""}) is None
    assert environment.file({}) is None


SERVICE = """
BOTPROXY_SERVICE_HOST=10.96.0.7
BOTPROXY_SERVICE_PORT=443
BOTPROXY_SERVICE_PORT_HTTPS=443
BOTPROXY_PORT=tcp://10.96.0.7:443
BOTPROXY_PORT_443_TCP=tcp://10.96.0.7:443
BOTPROXY_PORT_443_TCP_PROTO=tcp
BOTPROXY_PORT_443_TCP_PORT=443
BOTPROXY_PORT_443_TCP_ADDR=10.96.0.7
BOTPROXY_METRICS_SERVICE_HOST=10.96.0.8
BOTPROXY_METRICS_PORT_9090_TCP_ADDR=10.96.0.8
BOTPROXY_METRICS_PORT=tcp://10.96.0.8:9090
"""


def test_what_kubernetes_says_of_a_service_called_botproxy_is_no_configuration() -> None:
    told = dict(line.split("=", 1) for line in SERVICE.split())
    assert variables(told) == []
    assert load(PAIR | told) == load(PAIR)


def test_a_port_that_somebody_meant_is_told() -> None:
    [problem] = problems(PAIR | {"BOTPROXY_PORT": "8443"})
    assert problem.where == "BOTPROXY_PORT"


def test_a_bot_may_be_called_like_a_service() -> None:
    [variable] = variables({"BOTPROXY_UPSTREAMS__SERVICE_HOST": "{url: 'http://a'}"})
    assert variable.path == ("upstreams", "service_host")


def test_parents_come_first_and_entries_in_order() -> None:
    given = ["LISTEN__10", "LISTEN__9", "TIMEOUTS__DRAIN", "LISTEN", "TIMEOUTS", "LISTEN__9__ADDRESS"]
    found = [each.path for each in variables({f"BOTPROXY_{name}": "" for name in given})]
    assert found == [
        ("listen",),
        ("listen", 9),
        ("listen", 9, "address"),
        ("listen", 10),
        ("timeouts",),
        ("timeouts", "drain"),
    ]
    assert variables({"BOTPROXY_USER": "me"}) == [Variable("BOTPROXY_USER", ("user",), "me")]


# In use


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Development:
    return development.certificate(
        tmp_path_factory.mktemp("development"), datetime.datetime.now(datetime.UTC)
    )


@pytest.fixture
def given(files: Development, tmp_path: Path) -> dict[str, str]:
    """Enough to serve."""
    user = {"BOTPROXY_USER": "nobody"} if os.geteuid() == 0 else {}
    return user | {
        "BOTPROXY_CERTIFICATES__0__CHAIN": str(files.chain),
        "BOTPROXY_CERTIFICATES__0__KEY": str(files.key),
        "BOTPROXY_LISTEN": "['127.0.0.1:0']",
        "BOTPROXY_PLAIN_LISTEN": "[]",
        "BOTPROXY_WORKERS": "1",
        "BOTPROXY_STATE_DIR": str(tmp_path / "state"),
    }


def answer(files: Development, port: int) -> tuple[int, str | None]:
    """Status and X-From of one request over TLS."""
    context = ssl.create_default_context(cafile=files.ca)
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        response = connection.getresponse()
        return response.status, response.headers["X-From"]


def test_variables_alone_are_enough_to_serve_and_to_be_asked(files, given):
    with echo_bot.running() as bot:
        given |= {
            "BOTPROXY_UPSTREAMS__BOT__URL": f"http://127.0.0.1:{bot}",
            "BOTPROXY_HEADERS__SET": "{X-From: variables}",
        }
        with serving("serve", env=given) as proxy:
            assert answer(files, proxy.port()) == (200, "variables")
            assert botproxy("check", env=given).code == 0
            healthy = botproxy("health", env=given)
            assert (healthy.code, healthy.out) == (0, "ready\n")
            assert botproxy("reload", env=given).code == 0
            assert proxy.end(signal.SIGTERM) == 0


def test_the_file_is_named_by_a_variable_and_lies_below_the_others(files, given, tmp_path):
    file = tmp_path / "botproxy.yaml"
    with echo_bot.running() as bot:
        file.write_text(
            f"upstreams: {{bot: {{url: 'http://127.0.0.1:{bot}'}}}}\n"
            "headers: {set: {X-From: file}}\nworkers: 64\nadmin: 'unix:/nonexistent/admin.sock'\n"
        )
        given |= {"BOTPROXY_CONFIG": str(file), "BOTPROXY_ADMIN": f"unix:{tmp_path}/admin.sock"}
        with serving("serve", env=given) as proxy:
            assert answer(files, proxy.port()) == (200, "file")
            assert len(proxy.processes()) == 3  # supervisor, keeper, one worker
            assert botproxy("check", env=given).code == 0
            assert botproxy("health", env=given).out == "ready\n"
            del given["BOTPROXY_ADMIN"]
            assert botproxy("health", env=given).code == 1
            assert proxy.end(signal.SIGTERM) == 0


def test_an_option_wins_over_a_variable_and_is_blamed_then(given):
    ended = botproxy("serve", "--workers", "0", env=given | {"BOTPROXY_WORKERS": "x"})
    assert ended.code == 2
    assert ended.err.startswith("botproxy: error: --workers: ")
    assert "BOTPROXY_WORKERS" not in ended.err


def test_a_bot_to_go_to_may_be_an_option_beside_variables(files, given):
    with (
        echo_bot.running() as bot,
        serving("serve", "--to", f"http://127.0.0.1:{bot}", env=given) as proxy,
    ):
        assert answer(files, proxy.port()) == (200, None)
        assert proxy.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_mistake_ends_with_2_and_the_name_of_the_variable(command, given):
    ended = botproxy(command, env=given | {"BOTPROXY_TIMEOUTS__DRIAN": "3s"})
    assert ended.code == 2
    assert 'BOTPROXY_TIMEOUTS__DRIAN: timeouts.drian: expected a known key, found "drian"' in ended.err
    assert 'did you mean "drain"?' in ended.err


def test_without_file_variables_and_options_there_is_nothing_to_serve():
    ended = botproxy("serve", env={"BOTPROXY_CONFIG": "", "BOTPROXY_PORT": "tcp://10.96.0.7:443"})
    assert ended.code == 2
    assert "found neither" in ended.err


def test_health_says_which_socket_of_the_variables_it_asked(tmp_path):
    ended = botproxy("health", env={"BOTPROXY_STATE_DIR": str(tmp_path)})
    assert ended.code == 1
    assert str(tmp_path / "admin.sock") in ended.err
    ended = botproxy("health", env={"BOTPROXY_ADMIN": "off"})
    assert (ended.code, '"BOTPROXY_ADMIN": admin: expected a socket to ask' in ended.err) == (1, True)
