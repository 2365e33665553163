"""Which route serves a request, and that no spelling of a path leads around a rule."""

from __future__ import annotations

import itertools
import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from botproxy.config.schema import Config
from botproxy.errors import BadRequest, Misdirected, NotFound
from botproxy.policy.routes import RouteTable
from tests.policy.settings import config

BOTS = {"main": {"url": "http://127.0.0.1:8000"}, "telegram": {"url": "http://127.0.0.1:8001"}}


def table(*routes: dict[str, object]) -> RouteTable:
    return RouteTable(config(upstreams=BOTS, routes=[{"upstream": "main"} | route for route in routes]))


def served(routes: RouteTable, host: str, target: bytes) -> int | str:
    """Index of the route, or the name of the error."""
    try:
        return routes.match(host, target).index
    except (Misdirected, NotFound, BadRequest) as error:
        return type(error).__name__


def test_the_default_serves_every_host_and_path() -> None:
    routes = RouteTable(config())
    for host, target in [("", b"/"), ("a.example", b"/x/../%2e%2e//y;z\x00"), ("[::1]", b"*")]:
        route = routes.match(host, target)
        assert (route.index, route.upstream, route.name) == (0, "bot", "/")
    assert routes.serves("anything.example")
    assert not routes.names_hosts


@pytest.mark.parametrize(
    ("target", "fits"),
    [
        (b"/telegram", True),
        (b"/telegram/", True),
        (b"/telegram/x/y", True),
        (b"/telegram?x=1", True),
        (b"/telegram/x?y", True),
        (b"/telegramx", False),
        (b"/Telegram", False),
        (b"/tele", False),
        (b"/", False),
        (b"/x?/telegram", False),
        (b"*", False),
    ],
)
def test_a_path_is_served_on_segment_boundaries(target: bytes, fits: bool) -> None:
    assert served(table({"path": "/telegram"}), "bot.example", target) == (0 if fits else "NotFound")


def test_a_path_that_ends_in_a_slash_serves_what_is_below_it() -> None:
    routes = table({"path": "/hooks/"})
    assert served(routes, "", b"/hooks/") == 0
    assert served(routes, "", b"/hooks/a") == 0
    assert served(routes, "", b"/hooks") == "NotFound"


def test_the_first_route_that_fits_wins() -> None:
    routes = table({"path": "/a/b"}, {"path": "/a"}, {"hosts": ["x.example"]}, {"path": "/z"})
    assert served(routes, "y.example", b"/a/b/c") == 0
    assert served(routes, "y.example", b"/a/c") == 1
    assert served(routes, "x.example", b"/z") == 2
    assert served(routes, "y.example", b"/z") == 3
    assert served(routes, "y.example", b"/q") == "NotFound"


@pytest.mark.parametrize(
    ("host", "outcome"),
    [
        ("a.example", 0),
        ("b.example", 1),
        ("c.d.example", "Misdirected"),
        ("example", "Misdirected"),
        ("", "Misdirected"),
        ("evil.test", "Misdirected"),
    ],
)
def test_a_host_is_exact_or_one_label_below_a_wildcard(host: str, outcome: int | str) -> None:
    routes = table({"hosts": ["a.example"]}, {"hosts": ["*.example"]})
    assert served(routes, host, b"/") == outcome
    assert routes.serves(host) == (outcome != "Misdirected")
    assert routes.names_hosts


def test_a_served_host_with_no_such_path_is_404_and_not_421() -> None:
    routes = table({"hosts": ["a.example"], "path": "/hook"})
    assert served(routes, "a.example", b"/other") == "NotFound"
    assert served(routes, "b.example", b"/hook") == "Misdirected"


def test_a_route_carries_its_upstream_and_its_rates_and_hides_a_secret_in_its_name() -> None:
    routes = table(
        {"path": "/x", "hosts": ["a.example", "b.example"]},
        {
            "path": "/bot123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw",
            "upstream": "telegram",
            "rate": {"total": "5/s"},
        },
    )
    assert routes.match("a.example", b"/x").name == "a.example+1/x"
    secret = routes.match("", b"/bot123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw")
    assert (secret.name, secret.upstream, secret.rate.total) == ("/***", "telegram", 5.0)


# Spellings


RULE: tuple[dict[str, object], ...] = ({"path": "/telegram", "upstream": "telegram"}, {})


@pytest.mark.parametrize(
    "target",
    [
        b"/%74elegram/x",
        b"/%2574elegram",
        b"//telegram",
        b"/./telegram",
        b"/x/../telegram",
        b"/x/%2e%2e/telegram",
        b"/x/.%2E/telegram",
        b"/x/..;a/telegram",
        b"/x\\..\\telegram",
        b"/\\telegram",
        b"/%5ctelegram",
        b"/telegram;v=1/x",
        b"/telegram%2fx",
        b"/telegram%2Fx?a",
        b"/telegram%00",
        b"/telegram\\x",
        b"/telegram/../x",
        b"/a;%2fc/telegram",
        b"/;a/telegram",
    ],
)
def test_a_path_that_another_reader_takes_elsewhere_is_refused(target: bytes) -> None:
    assert served(table(*RULE), "", target) == "BadRequest"


@pytest.mark.parametrize(
    ("target", "index"),
    [
        (b"/api/v4/projects/a%2Fb", 1),
        (b"/telegram/a%2Fb//c;d=1/%25", 0),
        (b"/caf%C3%A9/a%20b", 1),
        (b"/@scope%2fname", 1),
        (b"/.well-known/x", 1),
        (b"/x//y/./z", 1),
        (b"/x;y=1", 1),
        (b"/100%", 1),
        (b"/x?redirect=//evil/%2e%2e/telegram", 1),
        (b"/telegram%20x", 1),
    ],
)
def test_an_odd_path_passes_where_every_reader_takes_it_alike(target: bytes, index: int) -> None:
    assert served(table(*RULE), "", target) == index


def test_nothing_is_refused_where_paths_decide_nothing() -> None:
    routes = table({"hosts": ["a.example"], "path": "/telegram"}, {"hosts": ["*.example"]})
    assert served(routes, "b.example", b"/x/../%2ftelegram;%00") == 1
    assert served(routes, "a.example", b"/x/../telegram") == "BadRequest"


def test_a_hostile_path_costs_little() -> None:
    """Each of these was, or could be, quadratic; 8 KiB then take seconds."""
    routes = table(*RULE)
    for piece in (b";", b"/;", b"%25", b"/.", b"//", b"\\", b";a%", b"/..x", b"%"):
        served(routes, "", b"/" + piece * (8000 // len(piece)))


# Against slow readings of the same rules


HOSTS = ["a.example", "b.example", "*.example", "x.a.example", "*.a.example", "other.test"]
PATHS = ["/", "/a", "/a/b", "/a/b/", "/b", "/a;b", "/telegram"]
ROUTES = st.lists(
    st.fixed_dictionaries(
        {"hosts": st.lists(st.sampled_from(HOSTS), max_size=3), "path": st.sampled_from(PATHS)}
    ),
    min_size=1,
    max_size=5,
)
PIECES = [
    "a",
    "b",
    "telegram",
    "/",
    "/",
    "//",
    ".",
    "..",
    "%2e",
    "%2F",
    "%5c",
    "\\",
    ";",
    "%3b",
    "%61",
    "%2561",
]
TARGETS = st.lists(st.sampled_from([*PIECES, "%252f", "%00", "%20", "x"]), max_size=7).map(
    lambda pieces: ("/" + "".join(pieces)).encode()
)
ASKED = st.sampled_from(
    ["a.example", "b.example", "x.a.example", "y.x.a.example", "example", "nobody.test", ""]
)


def slow(settings: Config, host: str, path: bytes) -> int | str:
    """First fit, as the documentation says it."""
    known = False
    for index, route in enumerate(settings.routes):
        wildcard = "*." + host.partition(".")[2]
        if route.hosts and host not in route.hosts and wildcard not in route.hosts:
            continue
        known = True
        rule = route.path.encode()
        if rule == b"/" or path == rule or path.startswith(rule if rule.endswith(b"/") else rule + b"/"):
            return index
    return "NotFound" if known else "Misdirected"


def many(routes: list[dict[str, object]]) -> list[dict[str, object]]:
    """The same routes behind a hundred that never fit."""
    filler: list[dict[str, object]] = [{"hosts": [f"h{number}.filler.test"]} for number in range(100)]
    return filler + routes


def reachable(routes: list[dict[str, object]]) -> Config:
    """The configuration of `routes`; a test is not about one that is refused."""
    try:
        return config(routes=routes)
    except ValidationError:
        reject()


@given(ROUTES, ASKED, st.sampled_from([b"/", b"/a", b"/a/b", b"/a/b/c", b"/ab", b"/telegram/x", b"/A"]))
def test_matching_equals_the_slow_way(routes: list[dict[str, object]], host: str, path: bytes) -> None:
    few, plenty = reachable(routes), reachable(many(routes))
    expected = slow(few, host, path)
    assert served(RouteTable(few), host, path) == expected
    shifted = expected + 100 if isinstance(expected, int) else expected
    assert served(RouteTable(plenty), host, path) == shifted
    assert RouteTable(few).serves(host) == (expected != "Misdirected")


STEPS = {
    "decode": unquote_to_bytes,
    "decode again": unquote_to_bytes,
    "backslash": lambda path: path.replace(b"\\", b"/"),
    "parameters": lambda path: re.sub(rb";[^/]*", b"", path),
    "nul": lambda path: path.partition(b"\x00")[0],
    "gaps": lambda path: re.sub(rb"//+", b"/", path),
    "dots": lambda path: _without_dots(path),
}


def _without_dots(path: bytes) -> bytes:
    kept: list[bytes] = []
    *inner, last = path.split(b"/")[1:]
    for segment in inner:
        if segment == b"..":
            del kept[-1:]
        elif segment != b".":
            kept.append(segment)
    if last == b"..":
        del kept[-1:]
    return b"/" + b"/".join([*kept, b"" if last in (b".", b"..") else last])


@settings(max_examples=150)
@given(ROUTES, TARGETS, st.permutations(list(STEPS)))
def test_no_reading_of_a_path_leads_to_another_route(
    routes: list[dict[str, object]], target: bytes, order: list[str]
) -> None:
    """Every subset of what bots do to a path, in a random order, decides as the raw bytes did."""
    settings = reachable([route | {"hosts": []} for route in routes])
    decided = served(RouteTable(settings), "", target)
    if decided == "BadRequest":
        return
    for count in range(len(order) + 1):
        for steps in itertools.combinations(order, count):
            path = target
            for step in steps:
                path = STEPS[step](path)
            assert slow(settings, "", path) == decided, (steps, path)
