"""Values that are fine alone and contradict each other.

Pure functions over plain values, called by the validators of `schema.Config`;
each returns every contradiction of its kind, with the key to blame. What a
single value may be is said in `values` and `units`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from botproxy.config.units import Fault, Refused
from botproxy.config.values import Target, endpoints

Listening = tuple[str, Sequence[str]]
"""A key that lists listening addresses, and those addresses."""


def refuse(faults: list[Fault]) -> None:
    """Raises Refused if there is anything to refuse."""
    if faults:
        raise Refused(*faults)


def repeated(listening: Listening, *earlier: Listening) -> list[Fault]:
    """Addresses of `listening` bound twice, there or in an `earlier` key."""
    bound: dict[tuple[str, int], tuple[str, int]] = {
        endpoint: (key, index)
        for key, entries in earlier
        for index, address in enumerate(entries)
        for endpoint in endpoints(address)
    }
    key, addresses = listening
    faults = []
    for index, address in enumerate(addresses):
        own = sorted(endpoints(address))
        first = next((bound[endpoint] for endpoint in own if endpoint in bound), None)
        if first is not None:
            faults.append(
                Fault(
                    "each address once",
                    found=f"the address of {first[0]}[{first[1]}] again",
                    hint=None if first[0] == key else f"`{key}: []` turns it off",
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
        if target.endpoints() & endpoints(address)
    ]


def astray(named: Sequence[str | None], upstreams: Sequence[str]) -> list[Fault]:
    """Routes to an upstream that does not exist, or to none where there are several."""
    faults = []
    for index, name in enumerate(named):
        if name in upstreams or (name is None and len(upstreams) == 1):
            continue
        nearest = get_close_matches(name or "", upstreams, 1)
        faults.append(
            Fault(
                f"one of the upstreams {', '.join(upstreams)}",
                found=f'"{name}"' if name else "none named",
                hint=f'did you mean "{nearest[0]}"?' if nearest else None,
                at=("routes", index, "upstream"),
                against=("upstreams",),
            )
        )
    return faults


def unreachable(routes: Sequence[tuple[Sequence[str], str]]) -> list[Fault]:
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


def _covers(earlier: tuple[Sequence[str], str], route: tuple[Sequence[str], str]) -> bool:
    (hosts, path), (own_hosts, own_path) = earlier, route
    if hosts and not (own_hosts and set(own_hosts) <= set(hosts)):
        return False
    return f"{own_path.rstrip('/')}/".startswith(f"{path.rstrip('/')}/")
