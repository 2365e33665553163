"""Beginning and end: signals, requests in flight, processes and what they may do."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import ssl
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.harness import Bot, Proxied, free_port, status_of
from tests.wire import OK, HelloFor, Wire, get, post

MANY = 2000


class Gate:
    """A bot's behaviour that answers only once the gate is open."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, wire: Wire) -> None:
        while wire.read_message().head:
            self.arrived.release()
            self.open.wait(20)
            wire.send(OK)


@pytest.fixture
def gate() -> Gate:
    return Gate()


# SIGTERM


def test_what_is_in_flight_is_answered_and_nothing_is_accepted(
    start: Start, trust: ssl.SSLContext, gate: Gate
) -> None:
    with Bot(gate) as bot:
        front = start(bot.url, timeouts={"drain": "15s"})
        with front.connect(trust) as busy, front.connect(trust) as idle:
            idle.send(get())
            gate.arrived.acquire(timeout=5)
            gate.open.set()
            assert "connection" not in idle.read_message()
            gate.open.clear()
            busy.send(get() + get("/pipelined"))
            assert gate.arrived.acquire(timeout=5)
            front.terminate()
            assert idle.read_to_end() == (b"", True)
            with pytest.raises(ConnectionRefusedError):
                front.tcp()
            gate.open.set()
            response = busy.read_message()
            assert response.status == 200
            assert response.value("connection") == "close"
            assert busy.read_to_end() == (b"", True)
            assert front.wait() == 0
        assert len(bot.requests) <= 2


def test_sigquit_is_as_gentle_and_sigusr1_ends_nothing(
    start: Start, trust: ssl.SSLContext, gate: Gate
) -> None:
    with Bot(gate) as bot:
        front = start(bot.url, workers=1)
        with front.connect(trust) as busy:
            busy.send(get())
            assert gate.arrived.acquire(timeout=5)
            before = front.children()
            for pid in (*before, front.process.pid):
                os.kill(pid, signal.SIGUSR1)
            front.log.wait_for(lambda line: "SIGUSR1 is for bots" in line)
            assert front.children() == before
            front.process.send_signal(signal.SIGQUIT)
            front.log.wait_for(lambda line: "stopping" in line)
            gate.open.set()
            assert busy.read_message().status == 200
        assert front.wait() == 0


def test_an_upload_in_flight_is_finished(start: Start, trust: ssl.SSLContext) -> None:
    with Bot() as bot:
        front = start(bot.url, timeouts={"drain": "15s"})
        with front.connect(trust) as client, front.connect(trust) as witness:
            assert witness.request(get()).status == 200
            client.send(post("/upload", "Content-Length: 10", body=b"01234"))
            bot.wait_for(lambda: bot.connections == 2)
            front.terminate()
            assert witness.read_to_end() == (b"", True)
            client.send(b"56789")
            response = client.read_message()
            assert response.status == 200
            assert response.value("connection") == "close"
        assert bot.requests[-1].body == b"0123456789"
        assert front.wait() == 0


def test_a_request_whose_head_is_on_its_way_is_answered(start: Start, trust: ssl.SSLContext) -> None:
    with Bot() as bot:
        front = start(bot.url, timeouts={"drain": "15s"})
        with front.connect(trust) as client, front.connect(trust) as witness:
            assert witness.request(get()).status == 200
            assert client.request(get()).status == 200
            client.send(get()[:10])
            # What was sent before on another connection is read before what comes now on this one.
            assert witness.request(get()).status == 200
            front.terminate()
            assert witness.read_to_end() == (b"", True)
            client.send(get()[10:])
            response = client.read_message()
            assert response.status == 200
            assert response.value("connection") == "close"
        assert front.wait() == 0


def test_after_the_drain_time_the_rest_is_cut(start: Start, trust: ssl.SSLContext, gate: Gate) -> None:
    with Bot(gate) as bot:
        front = start(bot.url, timeouts={"drain": "700ms"})
        with front.connect(trust) as client:
            client.send(get())
            assert gate.arrived.acquire(timeout=5)
            started = time.monotonic()
            front.terminate()
            assert client.read_to_end() == (b"", False)
            assert 0.6 < time.monotonic() - started < 2
            assert front.wait() == 0
        gate.open.set()


def test_a_second_sigterm_cuts_now(start: Start, trust: ssl.SSLContext, gate: Gate) -> None:
    with Bot(gate) as bot:
        front = start(bot.url, timeouts={"drain": "60s"}, workers=2)
        with front.connect(trust) as client:
            client.send(get())
            assert gate.arrived.acquire(timeout=5)
            front.terminate()
            front.log.wait_for(lambda line: "stopping" in line)
            started = time.monotonic()
            front.terminate()
            assert client.read_to_end() == (b"", False)
            assert front.wait() == 0
            assert time.monotonic() - started < 2
        gate.open.set()


def test_a_sigterm_to_every_process_at_once_is_as_gentle(
    start: Start, trust: ssl.SSLContext, gate: Gate
) -> None:
    """systemd stops a service so; the workers get the supervisor's SIGTERM on top."""
    with Bot(gate) as bot:
        front = start(bot.url, timeouts={"drain": "15s"})
        with front.connect(trust) as busy, front.connect(trust) as idle:
            busy.send(get())
            assert gate.arrived.acquire(timeout=5)
            gate.open.set()
            busy.read_message()
            assert idle.request(get()).status == 200
            gate.arrived.acquire(timeout=5)
            gate.open.clear()
            busy.send(get())
            assert gate.arrived.acquire(timeout=5)
            for child in front.children():
                os.kill(child, signal.SIGTERM)
            assert idle.read_to_end() == (b"", True)
            front.terminate()
            front.log.wait_for(lambda line: "stopping" in line)
            gate.open.set()
            assert busy.read_message().status == 200
        assert front.wait() == 0


def test_a_connection_that_waits_to_be_accepted_is_served(start: Start, trust: ssl.SSLContext) -> None:
    with Bot() as bot:
        front = start(bot.url, timeouts={"drain": "15s"})
        (worker,) = front.workers()
        os.kill(worker, signal.SIGSTOP)
        try:
            hello = HelloFor(trust)
            with front.tcp() as sock:
                sock.sendall(hello.data)
                front.terminate()
                front.log.wait_for(lambda line: "stopping" in line)
                os.kill(worker, signal.SIGCONT)
                hello.finish(sock)
                answer = hello.exchange(sock, get())
                assert b" 200 " in answer
                assert b"Connection: close" in answer
        finally:
            with suppress(ProcessLookupError):  # it has ended, as it should
                os.kill(worker, signal.SIGCONT)
        assert front.wait() == 0


def test_a_silent_client_in_its_handshake_does_not_hold_up_the_end(start: Start) -> None:
    with Bot() as bot:
        front = start(bot.url, timeouts={"drain": "2s"})
        with front.tcp():
            started = time.monotonic()
            front.terminate()
            assert front.wait() == 0
            assert time.monotonic() - started < 4


def test_requests_held_for_an_absent_bot_are_not_lost(
    start: Start, trust: ssl.SSLContext, unused_port: int
) -> None:
    front = start(f"http://127.0.0.1:{unused_port}", timeouts={"drain": "15s"})
    with front.connect(trust) as client:
        client.send(get())
        assert not client.has_more(0.3)
        front.terminate()
        front.log.wait_for(lambda line: "stopping" in line)
        with Bot(port=unused_port):
            assert client.read_message().status == 200
            client.close()
    assert front.wait() == 0


def test_thousands_in_flight_are_all_answered(start: Start, trust: ssl.SSLContext) -> None:
    """Answers are released only after SIGTERM was sent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 4 * MANY, "the test needs that many open files"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        statuses, code = asyncio.run(_drain_thousands(start, trust))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(statuses) == MANY
    assert set(statuses) == {b"HTTP/1.1 200 OK"}
    assert code == 0


async def _drain_thousands(start: Start, trust: ssl.SSLContext) -> tuple[list[bytes], int]:
    arrived = asyncio.Semaphore(0)
    released = asyncio.Event()

    async def bot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.release()
        await released.wait()
        writer.write(OK)
        await writer.drain()
        await reader.read()  # until it is closed
        writer.close()

    async def client(port: int) -> bytes:
        async with shaking:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trust, server_hostname="localhost"
            )
        writer.write(get())
        data = await reader.read()
        writer.close()
        head = data.partition(b"\r\n\r\n")[0]
        assert b"Connection: close" in head
        assert data.endswith(b"ok")
        return data.partition(b"\r\n")[0]

    shaking = asyncio.Semaphore(50)
    async with await asyncio.start_server(bot, "127.0.0.1", 0, backlog=4096) as server:
        port = server.sockets[0].getsockname()[1]
        front = await asyncio.to_thread(
            start,
            f"http://127.0.0.1:{port}",
            workers=2,
            timeouts={"drain": "25s"},
            limits={"connections_per_address": 10_000},
            log={"access": "off"},
        )
        clients = [asyncio.create_task(client(front.port)) for _ in range(MANY)]
        for _ in range(MANY):
            await arrived.acquire()
        front.terminate()
        await asyncio.to_thread(front.log.wait_for, lambda line: "stopping" in line)
        released.set()
        answers = await asyncio.gather(*clients)
        return answers, await asyncio.to_thread(front.wait)


# Processes


def test_processes_are_named_for_what_they_are(start: Start) -> None:
    with Bot() as bot:
        front = start(bot.url, workers=2)
        assert sorted(front.children().values()) == ["botproxy-keeper", "botproxy-worker", "botproxy-worker"]
        assert Path(f"/proc/{front.process.pid}/comm").read_text() == "botproxy-super\n"
        shown = subprocess.run(["ps", "-e", "-o", "comm="], capture_output=True, text=True, check=True).stdout
        assert {"botproxy-super", "botproxy-keeper", "botproxy-worker"} <= set(shown.split())


def test_a_killed_worker_is_replaced(start: Start, trust: ssl.SSLContext) -> None:
    with Bot() as bot:
        front = start(bot.url)
        (worker,) = front.workers()
        with front.connect(trust) as client:
            assert client.request(get()).status == 200
            os.kill(worker, signal.SIGKILL)
            assert not client.read_to_end()[1]
        with front.connect(trust) as client:  # queued until there is a worker
            assert client.request(get()).status == 200
        (replacement,) = front.workers()
        assert replacement != worker
        front.log.wait_for(lambda line: "a worker ended and is replaced" in line)


def test_the_connections_of_a_killed_worker_count_no_more(start: Start, trust: ssl.SSLContext) -> None:
    with Bot() as bot:
        front = start(bot.url, limits={"connections": 3})
        for _ in range(2):
            with ExitStack() as stack:
                for _ in range(3):
                    client = stack.enter_context(front.connect(trust))
                    assert client.request(get()).status == 200
                (worker,) = front.workers()
                os.kill(worker, signal.SIGKILL)
                assert not client.read_to_end()[1]


def test_workers_have_no_rights_and_no_way_back(start: Start) -> None:
    with Bot() as bot:
        front = start(bot.url, workers=2)
        for worker in front.workers():
            assert status_of(worker, "NoNewPrivs") == ["1"]
            if os.geteuid() == 0:
                for ids in ("Uid", "Gid"):
                    assert len(set(status_of(worker, ids))) == 1, "a saved id is a way back"
                    assert status_of(worker, ids)[0] != "0"
                assert status_of(worker, "Groups") == []
                for capabilities in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
                    assert int(status_of(worker, capabilities)[0], 16) == 0


def test_when_the_supervisor_is_killed_its_children_end_and_ports_are_free(
    start: Start, trust: ssl.SSLContext, unused_port: int
) -> None:
    with Bot() as bot:
        listen = [f"127.0.0.1:{unused_port}"]
        front = start(bot.url, workers=2, listen=listen, ends_with=-signal.SIGKILL)
        children = set(front.children())
        assert len(children) == 3
        with front.connect(trust) as client:
            assert client.request(get()).status == 200
            front.process.kill()
            assert client.read_to_end()[0] == b""
        assert front.wait() == -signal.SIGKILL
        deadline = time.monotonic() + 10
        while any(_is_botproxy(child) for child in children):
            assert time.monotonic() < deadline, "children outlive their supervisor"
        with start(bot.url, workers=2, listen=listen).connect(trust) as client:
            assert client.request(get()).status == 200


def _is_botproxy(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("botproxy") and "Z" not in status_of(
            pid, "State"
        )
    except OSError:
        return False


@pytest.mark.parametrize("moment", ["certificates are loaded", "serves the certificates"])
def test_sigterm_while_it_starts_ends_in_order(start: Start, tmp_path: Path, moment: str) -> None:
    """Also when some workers are ready and others are not."""
    with Bot() as bot:
        config = start(bot.url).config | {"workers": 4}
        for number in range(4):
            config["listen"] = [f"127.0.0.1:{free_port()}"]
            directory = tmp_path / str(number)
            directory.mkdir()
            front = Proxied(config, directory)
            front.log.wait_for(lambda line: moment in line)
            front.terminate()
            code, log = front.wait(), front.log.join()
            front.access.join()
            assert code == 0, log
            assert not [line for line in log if "Traceback" in line or "level=error" in line], log
