"""Values that are fine alone and contradict each other.

Judges a document as it was written, on whatever in it is right: a mistake in one
place hides no contradiction in another. Each fault names the key to blame. What
a single value may be is said in `values` and `units`, and only there: what is
wrong alone is passed over here.

Asked by `schema.Config`, and by `load` for documents that `schema` refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

from botproxy.config.units import Fault, Refused
from botproxy.config.values import (
    Target,
    endpoints,
    header_name,
    listen_address,
    parse_target,
    route_host,
    route_path,
    upstream_name,
)

Listening = tuple[str, Sequence[str | None]]
"""A key that lists listening addresses, and those addresses; None for one that is wrong."""
Reach = tuple[Sequence[str], str] | None
"""Hosts and path of a route; None where one of them is wrong."""


def contradictions(document: Mapping[str, object]) -> list[Fault]:
    """Every contradiction between values of `document` that are right alone."""
    listen, plain = _listening(document, "listen"), _listening(document, "plain_listen")
    targets, routes = _targets(document), _entries(document, "routes")
    faults = repeated(listen) + repeated(plain, listen)
    if document.get("acme_webroot") is not None and document.get("plain_listen") in ([], ()):
        faults.append(
            Fault(
                "an address in `plain_listen`, where these files are served",
                found="none",
                hint='write plain_listen: [":80"], or leave `acme_webroot` out',
                at=("acme_webroot",),
            )
        )
    faults += loops({name: target for name, target in targets.items() if target}, listen, plain)
    faults += unreachable([_reach(route) for route in routes])
    if targets:
        faults += astray(routes, list(targets))
    faults += namesakes(_entries(document, "certificates"))
    return faults + twice(_mapping(_mapping(document.get("headers")).get("set")))


def repeated(listening: Listening, *earlier: Listening) -> list[Fault]:
    """Addresses of `listening` bound twice, there or in an `earlier` key."""
    bound: dict[tuple[str, int], tuple[str, int]] = {
        endpoint: (key, index)
        for key, entries in earlier
        for index, address in enumerate(entries)
        if address
        for endpoint in endpoints(address)
    }
    key, addresses = listening
    faults = []
    for index, address in enumerate(addresses):
        own = sorted(endpoints(address)) if address else []
        first = next((bound[endpoint] for endpoint in own if endpoint in bound), None)
        if first is not None:
            faults.append(
                Fault(
                    "each address once",
                    found=f"the address of {first[0]}[{first[1]}] again",
                    hint="remove one of the two" if first[0] == key else f"`{key}: []` turns it off",
                    at=(key, index),
                    against=first,
                )
            )
        bound |= {endpoint: (key, index) for endpoint in own if endpoint not in bound}
    return faults


def loops(targets: Mapping[str, Target], *listening: Listening) -> list[Fault]:
    """Upstreams that are ourselves."""
    return [
        Fault(
            "the address of the bot",
            found=f"an address that {key}[{index}] listens on",
            hint="requests would go round in a circle; the bot needs a port of its own",
            at=("upstreams", name, "url"),
            against=(key, index),
        )
        for name, target in targets.items()
        for key, addresses in listening
        for index, address in enumerate(addresses)
        if address and target.endpoints() & endpoints(address)
    ]


def astray(routes: Sequence[object], upstreams: Sequence[str]) -> list[Fault]:
    """Routes to an upstream that does not exist, or to none where there are several."""
    known = [name for name in upstreams if _is(upstream_name, name)]
    faults = []
    for index, route in enumerate(routes):
        name = _mapping(route).get("upstream")
        if not isinstance(route, Mapping) or name in upstreams or (name is None and len(upstreams) == 1):
            continue
        if not known or not (name is None or (isinstance(name, str) and _is(upstream_name, name))):
            continue
        nearest = get_close_matches(name or "", known, 1)
        faults.append(
            Fault(
                f"one of the upstreams {', '.join(known)}",
                found=f'"{name}"' if name else "none named",
                hint=f'did you mean "{nearest[0]}"?'
                if nearest
                else f"name one in the route: `upstream: {known[0]}`",
                at=("routes", index, "upstream"),
                against=("upstreams",),
            )
        )
    return faults


def unreachable(routes: Sequence[Reach]) -> list[Fault]:
    """Routes (hosts, path) that an earlier one leaves no request to."""
    faults = []
    for index, route in enumerate(routes):
        first = next((n for n, earlier in enumerate(routes[:index]) if _covers(earlier, route)), None)
        if first is not None:
            faults.append(
                Fault(
                    "a route that some request can reach",
                    found=f"one behind routes[{first}], which takes them all",
                    hint="the first route that fits wins; write the narrower one first",
                    at=("routes", index),
                )
            )
    return faults


def namesakes(certificates: Sequence[object]) -> list[Fault]:
    """Certificates with the `name` of an earlier one."""
    seen: dict[object, int] = {}
    faults = []
    for index, certificate in enumerate(certificates):
        name = _mapping(certificate).get("name")
        if not isinstance(name, str):
            continue
        if name in seen:
            faults.append(
                Fault(
                    "each name once",
                    found=f"the name of certificates[{seen[name]}] again",
                    hint="leave `name` out: the path of the file makes one",
                    at=("certificates", index, "name"),
                    against=("certificates", seen[name], "name"),
                )
            )
        seen.setdefault(name, index)
    return faults


def twice(headers: Mapping[str, object]) -> list[Fault]:
    """Response headers that are set again in another case."""
    seen: dict[str, str] = {}
    return [
        Fault(
            "each header once",
            found=f'"{first}" and "{name}"',
            hint="remove one of the two",
            at=("headers", "set", name),
        )
        for name in headers
        if _is(header_name, name) and (first := seen.setdefault(name.lower(), name)) != name
    ]


# Private


def _covers(earlier: Reach, route: Reach) -> bool:
    if earlier is None or route is None:
        return False
    (hosts, path), (own_hosts, own_path) = earlier, route
    if hosts and not (own_hosts and set(own_hosts) <= set(hosts)):
        return False
    return f"{own_path.rstrip('/')}/".startswith(f"{path.rstrip('/')}/")


def _listening(document: Mapping[str, object], key: str) -> Listening:
    written = [_mapping(each).get("address", each) for each in _entries(document, key)]
    return key, [each if isinstance(each, str) and _is(listen_address, each) else None for each in written]


def _targets(document: Mapping[str, object]) -> dict[str, Target | None]:
    """Upstreams by name; None for one without an address that is right."""
    targets: dict[str, Target | None] = {}
    for name, upstream in _mapping(document.get("upstreams")).items():
        url = _mapping(upstream).get("url")
        targets[name] = parse_target(url) if isinstance(url, str) and _is(parse_target, url) else None
    return targets


def _reach(route: object) -> Reach:
    if not isinstance(route, Mapping):
        return None
    hosts, path = route.get("hosts", ()), route.get("path", "/")
    if not isinstance(hosts, list | tuple) or not isinstance(path, str) or not _is(route_path, path):
        return None
    if not all(isinstance(host, str) and _is(route_host, host) for host in hosts):
        return None
    return [route_host(host) for host in hosts], path


def _entries(document: Mapping[str, object], key: str) -> Sequence[object]:
    value = document.get(key)
    return value if isinstance(value, list | tuple) else ()


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _is(check: Callable[[str], object], value: str) -> bool:
    try:
        check(value)
    except Refused:
        return False
    return True
