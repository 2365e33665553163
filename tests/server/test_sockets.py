"""Listening sockets."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from botproxy.config.schema import Listen
from botproxy.keeper.probes import Endpoint
from botproxy.server.sockets import BindError, Bound, Listening, endpoint_of, url_of


def listens(*addresses: str) -> list[Listen]:
    return [Listen(address=address) for address in addresses]


def bind_all(listens: Sequence[Listen], plain: Sequence[Listen], slots: int) -> list[list[Bound]]:
    return Listening().arrange(listens, plain, slots).slots


def close_all(slots: list[list[Bound]]) -> None:
    for slot in slots:
        for bound in slot:
            bound.sock.close()


def test_every_slot_has_a_socket_of_its_own_on_the_same_port() -> None:
    slots = bind_all(listens("127.0.0.1:0"), [], 3)
    try:
        assert len({bound.port for slot in slots for bound in slot}) == 1
        assert len({bound.sock.fileno() for slot in slots for bound in slot}) == 3
    finally:
        close_all(slots)


def test_no_host_means_both_families() -> None:
    slots = bind_all(listens(":0"), [], 1)
    try:
        for host in ("127.0.0.1", "::1"):
            socket.create_connection((host, slots[0][0].port), timeout=5).close()
    finally:
        close_all(slots)


def test_a_port_in_use_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(BindError, match=f'"{address}".*another program already listens'):
            bind_all(listens("127.0.0.1:0"), listens(address), 2)


def test_a_second_botproxy_cannot_share_the_port() -> None:
    first = bind_all(listens("127.0.0.1:0"), [], 1)
    try:
        with pytest.raises(BindError, match="another program already listens"):
            bind_all(listens(f"127.0.0.1:{first[0][0].port}"), [], 1)
    finally:
        close_all(first)


def test_nothing_stays_bound_when_one_address_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BindError):
        bind_all(listens(f"127.0.0.1:{free}"), listens("192.0.2.1:1"), 2)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_passed_socket_is_shared_by_all_slots() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        slots = bind_all(listens(f"fd:{os.dup(given.fileno())}"), [], 2)
        try:
            assert [bound.port for slot in slots for bound in slot] == [given.getsockname()[1]] * 2
        finally:
            close_all(slots)


def test_without_a_descriptor_for_another_slot_it_is_an_address_that_fails() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.create_server(("127.0.0.1", 0)) as given:
        number = os.dup(given.fileno())
        listening = Listening()
        resource.setrlimit(resource.RLIMIT_NOFILE, (number + 2, before[1]))
        try:
            with pytest.raises(BindError, match=rf'"fd:{number}": too many open files'):
                listening.arrange(listens(f"fd:{number}"), [], 8)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_sockets_of_the_service_manager_are_taken_and_missed_when_absent() -> None:
    script = (
        "import os; from botproxy.config.schema import Listen; from botproxy.server.sockets import *;"
        "os.environ['LISTEN_PID'] = str(os.getpid()); os.environ['LISTEN_FDS'] = '2';"
        "slots = Listening().arrange([Listen(address='systemd')], [], 1).slots;"
        "print(*[bound.port for bound in slots[0]])"
    )
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        done = subprocess.run(
            ["bash", "-c", f'exec {sys.executable} -c "$0" 3<&{one.fileno()} 4<&{two.fileno()}', script],
            pass_fds=(one.fileno(), two.fileno()),
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        assert done.stdout.split() == [str(one.getsockname()[1]), str(two.getsockname()[1])]
    with pytest.raises(BindError, match="no such socket was passed"):
        bind_all(listens("systemd"), [], 1)


def test_a_number_that_is_no_listening_socket_is_refused() -> None:
    with socket.socket() as sock, pytest.raises(BindError, match="does not listen"):
        bind_all(listens(f"fd:{os.dup(sock.fileno())}"), [], 1)
    with pytest.raises(BindError, match="listening socket with that number"):
        bind_all(listens("fd:987"), [], 1)


# Where a client of this machine comes in


def endpoint(listen: Listen) -> Endpoint:
    slots = bind_all([listen], [], 2)
    try:
        found = endpoint_of(slots[0])
        assert found is not None
        return found
    finally:
        close_all(slots)


@pytest.mark.parametrize(
    ("address", "family", "host"),
    [
        ("127.0.0.1:0", socket.AF_INET, "127.0.0.1"),
        ("127.0.0.2:0", socket.AF_INET, "127.0.0.2"),
        ("0.0.0.0:0", socket.AF_INET, "127.0.0.1"),
        (":0", socket.AF_INET, "127.0.0.1"),
        ("[::]:0", socket.AF_INET6, "::1"),
        ("[::1]:0", socket.AF_INET6, "::1"),
    ],
)
def test_a_listener_is_reached_from_this_machine(address: str, family: int, host: str) -> None:
    slots = bind_all(listens(address), [], 1)
    try:
        found = endpoint_of(slots[0])
        assert found == Endpoint(family, (host, slots[0][0].port), proxy_protocol=False, shared=False)
        with socket.socket(found.family) as client:
            client.connect(found.address)
    finally:
        close_all(slots)


@pytest.mark.parametrize(
    ("address", "balancers", "speaks"),
    [
        ("127.0.0.1:0", ["127.0.0.0/8"], True),
        (":0", ["10.0.0.0/8", "127.0.0.1"], True),
        ("[::1]:0", ["::1"], True),
        ("127.0.0.1:0", ["10.0.0.0/8"], False),
    ],
)
def test_a_proxy_header_is_sent_where_this_machine_has_to_send_one(
    address: str, balancers: list[str], speaks: bool
) -> None:
    listen = Listen.model_validate({"address": address, "proxy_protocol_from": balancers})
    assert endpoint(listen).proxy_protocol is speaks


def test_the_first_tls_listener_over_tcp_is_the_one(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "sock"))
        unix.listen()
        local = f"fd:{os.dup(unix.fileno())}"
        slots = bind_all(listens(local, "127.0.0.1:0", "127.0.0.2:0"), listens("127.0.0.1:0"), 1)
        try:
            found = endpoint_of(slots[0])
            assert found is not None
            assert found.address == ("127.0.0.1", slots[0][1].port)
            assert endpoint_of([slots[0][0], slots[0][3]]) is None
        finally:
            close_all(slots)


def test_a_socket_that_all_workers_accept_from_is_known_as_such() -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        assert endpoint(Listen(address=f"fd:{os.dup(given.fileno())}")).shared


def queues(bound: Bound) -> bool:
    return bool(bound.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def test_what_comes_later_queues_nobody_before_its_worker_does() -> None:
    listening = Listening()
    first = listening.arrange(listens("127.0.0.1:0"), [], 1)
    later = listening.arrange(listens("127.0.0.1:0", "127.0.0.2:0"), [], 2)
    try:
        assert [queues(bound) for bound in first.slots[0]] == [True]
        assert [queues(bound) for slot in later.slots for bound in slot] == [True, False, False, False]
        later.slots[1][0].listen()
        assert queues(later.slots[1][0])
    finally:
        close_all(later.slots)


def test_a_number_that_was_given_back_is_not_taken_for_another_socket() -> None:
    given = socket.create_server(("127.0.0.1", 0))
    address = f"fd:{given.fileno()}"
    listening = Listening()
    passed = listening.arrange(listens(address), [], 1)
    given.detach()
    ours = listening.arrange(listens("127.0.0.1:0"), [], 1)
    listening.keep_only(ours)
    assert passed.slots[0][0].sock.fileno() == -1
    with socket.create_server(("127.0.0.1", 0)) as another:
        assert f"fd:{another.fileno()}" == address
        with pytest.raises(BindError, match="was not open"):
            listening.arrange(listens(address), [], 1)
    close_all(ours.slots)


@pytest.mark.parametrize("name", ["\0botproxy-test", "path"])
def test_a_unix_socket_has_a_name_too(name: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(name if name.startswith("\0") else str(tmp_path / name))
        sock.listen()
        shown = url_of(Bound(sock, True, ()))
    assert shown == ("unix:@botproxy-test" if name.startswith("\0") else f"unix:{tmp_path}/path")
