"""Bytes over one connected, non-blocking socket, with bounded buffers.

The stream receives as soon as the socket is readable, even while nobody reads,
so that a peer that leaves is noticed at once (`on_lost`); it stops at
`READ_LIMIT` bytes, which is the backpressure. Writes go to the kernel at once
and only what it does not take is kept; `drain` waits until that is little.
Every wait has a deadline, kept as a number and looked at by one sweep
(`net.deadlines`), because a timer for each wait costs more than the wait.

What is received goes through `_recv`, what is sent through `write`: there
`tls.stream` puts its layer in between. Nothing here knows HTTP.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
from collections.abc import Callable
from math import inf

from botproxy.net.deadlines import Deadlines

READ_SIZE = 32 * 1024
"""Two records of TLS, which is what goes out again: with a half one behind them bulk costs a third more."""
READ_LIMIT = 12 * 1024
"""Unread bytes above which the socket is left alone; one more read may be on top."""
WRITE_HIGH = 16 * 1024
"""Unsent bytes above which `drain` waits. With the largest single write (`READ_LIMIT` and one more read of
the other side, 44 KiB, and what chunks and records put around it) the buffer stays below 64 KiB. All of it
is less than a hundred times what a client sends that asks for much and reads nothing (`bench/attacks`)."""
WRITE_LOW = 8 * 1024
LINGER_SECONDS = 10.0
"""How long a peer may go on sending after our last byte. A peer that sends everything before it reads
(Python's http.client does) would lose the answer to a reset."""
LINGER_PAUSE = 2.0
"""A peer silent for this long has nothing more to send."""


class StreamTimeout(Exception):
    """The deadline of a wait passed."""


class StreamClosed(ConnectionError):
    """The peer is gone, or the stream was aborted while somebody waited."""


class SocketStream:
    """A byte stream over `sock`, which it owns from now on."""

    # What is seldom set stands here until then: an object of more than thirty attributes, as those of
    # `tls.stream` would be, has a dictionary of its own, which takes time and 1.5 KiB.
    _drainer: asyncio.Future[None] | None = None
    _drain_low = 0
    _end_sent = False
    _quiet: select.poll | None = None
    """Asks the kernel for `is_quiet`; kept, because it costs twice as much to make as to ask."""

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop, deadlines: Deadlines) -> None:
        self.sock = sock
        self.on_lost: Callable[[], None] | None = None
        """Called once when the peer ends or breaks the connection while nobody reads."""
        self.ended = False
        """The peer sent its end of stream, in order."""
        self.error: OSError | None = None
        """Why the stream is dead."""
        self.sent = 0
        """Bytes that the kernel took."""
        self._loop = loop
        self._poller = deadlines.poller
        self._deadlines = deadlines
        self._fd = sock.fileno()
        self._inbox = b""
        self._outbox = bytearray()
        self._reading = False
        self._writing = False
        self._reader: asyncio.Future[bytes] | None = None
        """Who waits for the next bytes, and takes them from here when they come."""
        self._read_deadline = inf
        self._write_patience = inf
        self._write_deadline = inf
        self._write_error: OSError | None = None
        self._discarding = False
        """Set by `close`: what still comes is read only to be forgotten."""
        self._closed = False
        self.on_expired: Callable[[], None] | None = None
        """Called when the deadline set by `expire_at` passes."""
        self._resume()
        deadlines.watch(self)

    # Reading

    def read(self, deadline: float = inf) -> asyncio.Future[bytes]:
        """What has arrived, at least one byte; empty at the end of the stream.

        Raises StreamTimeout at `deadline` (loop time), StreamClosed when the connection broke. A future
        and no coroutine, which would cost half of the wait; who gives one up may lose what it brought.
        """
        reader = self._loop.create_future()
        if self._inbox or self.ended:
            reader.set_result(self.take())
        else:
            if not self._reading:
                self._begin_reading()
            self._read_deadline = deadline  # goes at the next sweep after the end of the wait
            self._reader = reader
        return reader

    def interrupt(self, error: Exception) -> bool:
        """End the wait of whoever reads with `error`; False when nobody does."""
        reader, self._reader = self._reader, None
        if reader is None or reader.done():
            return False
        reader.set_exception(error)
        return True

    def set_read_deadline(self, deadline: float) -> None:
        """Change the deadline of whoever reads now."""
        self._read_deadline = deadline

    def unread(self, data: bytes) -> None:
        """Put back what was read too much; the next `read` returns it first."""
        self._inbox = data + self._inbox if self._inbox else data

    def take(self) -> bytes:
        """What has arrived and is not read yet; never waits."""
        data, self._inbox = self._inbox, b""
        return data

    def peek(self) -> bytes:
        """What has arrived and is not read yet."""
        return self._inbox

    def is_quiet(self) -> bool:
        """Whether the peer has sent nothing at all, not even its end: asks the kernel, not only us."""
        if self._inbox or self.ended or self.error is not None or self._closed:
            return False
        if self._quiet is None:
            self._quiet = _poll(self._fd, select.POLLIN | select.POLLRDHUP)
        return not self._quiet.poll(0)

    def _begin_reading(self) -> None:
        if self.error is not None:
            raise StreamClosed(str(self.error)) from self.error
        if self._closed:
            raise StreamClosed("closed")
        self._resume()

    def _resume(self) -> None:
        if not self._reading and not self._closed and not self.ended:
            self._reading = True
            self._poller.add_reader(self._fd, self._on_readable)

    def pause(self) -> None:
        """Receive nothing more until the next `read`."""
        if self._reading:
            self._reading = False
            self._poller.hush_reader(self._fd, self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = self._recv()
        except OSError as error:
            self._break(error)
            return
        if data is None:
            return
        if not data:
            self._end()
            return
        reader = self._reader
        if reader is not None:
            self._reader = None
            if not reader.done():
                reader.set_result(data)
                return
        self._inbox = self._inbox + data if self._inbox else data
        if len(self._inbox) >= READ_LIMIT:
            self.pause()

    def _end(self) -> None:
        self.ended = True
        self.pause()
        self._wake_or_tell()

    def _break(self, error: OSError) -> None:
        """The connection is dead in both directions; everybody who waits is told."""
        if self.error is not None or self._closed:
            return
        self.error = error.with_traceback(None)  # in whose frames this stream is: that would be a circle
        self.pause()
        self._break_writing(error)
        self._wake_or_tell()

    def _break_writing(self, error: OSError) -> None:
        """Nothing more can be sent. Reading goes on: the peer may have answered before it closed."""
        if self._write_error is None:
            self._write_error = error.with_traceback(None)
            self._stop_writing()
            self._outbox.clear()
            if self._drainer is not None and not self._drainer.done():
                self._drainer.set_exception(StreamClosed(str(error)))

    def _wake_or_tell(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done():
            if self.error is not None:
                reader.set_exception(StreamClosed(str(self.error)))
            else:
                reader.set_result(b"")
        elif self.on_lost is not None:
            self.on_lost()

    # Writing

    def is_clear(self) -> bool:
        """Whether everything is sent and more would be."""
        return not self._outbox and self._write_error is None and not self._closed

    @property
    def unsent(self) -> int:
        """Bytes the kernel has not taken yet."""
        return len(self._outbox)

    def write(self, data: bytes, flags: int = 0) -> None:
        """Send `data`, keeping what the kernel does not take. A dead stream swallows it: see `drain`.

        `flags`: of send(2).
        """
        if self._write_error is not None or self._closed:
            return
        if self._outbox:
            self._outbox += data
            return
        try:
            count = self.sock.send(data, flags)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError as error:
            self._break_writing(error)
            return
        self.sent += count
        if count < len(data):
            self._outbox = bytearray(memoryview(data)[count:])  # as large as it need be, which += is not
            self._write_deadline = self._loop.time() + self._write_patience
            self._start_writing()

    async def drain(self, *, low: int = WRITE_LOW, high: int = WRITE_HIGH) -> None:
        """Wait, if more than `high` bytes are unsent, until at most `low` are.

        Raises StreamTimeout when the peer took no byte for the patience set, StreamClosed when it is gone.
        """
        if self._write_error is not None:
            raise StreamClosed(str(self._write_error)) from self._write_error
        if self._closed:
            raise StreamClosed("closed")
        if len(self._outbox) <= high:
            return
        if self._write_deadline == inf:  # the peer tried our patience once already
            self._write_deadline = self._loop.time() + self._write_patience
        self._drain_low = low
        self._drainer = self._loop.create_future()
        try:
            await self._drainer
        finally:
            self._drainer = None

    def set_write_patience(self, seconds: float) -> None:
        """How long the peer may take no byte at all (0: for ever)."""
        self._write_patience = seconds or inf

    def _start_writing(self) -> None:
        if not self._writing:
            self._writing = True
            self._poller.add_writer(self._fd, self._on_writable)

    def _stop_writing(self) -> None:
        self._write_deadline = inf
        if self._writing:
            self._writing = False
            self._poller.remove_writer(self._fd, self._on_writable)

    def _on_writable(self) -> None:
        try:
            count = self.sock.send(self._outbox)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._break_writing(error)
            return
        self.sent += count
        del self._outbox[:count]
        self._write_deadline = self._loop.time() + self._write_patience
        if not self._outbox:
            self._stop_writing()
            if self._end_sent:
                self._shut_down()
        drainer = self._drainer
        if drainer is not None and len(self._outbox) <= self._drain_low and not drainer.done():
            drainer.set_result(None)

    # Deadlines

    def check(self, now: float) -> None:
        """Called by the sweep: end the waits whose time is up."""
        if now >= self._read_deadline and not self.interrupt(StreamTimeout("read")):
            self._read_deadline = inf
            if self.on_expired is not None:
                self.on_expired()
        if now >= self._write_deadline:
            drainer = self._drainer
            if drainer is not None and not drainer.done():
                drainer.set_exception(StreamTimeout("write"))
                self._write_deadline = inf
            else:
                self._break(TimeoutError(errno.ETIMEDOUT, "the peer took no byte for too long"))
        if not self._reading and self.on_lost is not None:
            self._look_for_loss()

    def _look_for_loss(self) -> None:
        """While reading is paused the loop tells nothing about the peer: ask the kernel."""
        if self.ended or self.error is not None:
            return
        found = _poll(self._fd, select.POLLRDHUP).poll(0)
        events = found[0][1] if found else 0
        if events & (select.POLLERR | select.POLLHUP):
            self._break(ConnectionResetError(errno.ECONNRESET, "connection reset"))
        elif events and self.on_lost is not None:
            self.on_lost()

    def expire_at(self, deadline: float, then: Callable[[], None] | None) -> None:
        """Have `then` called when `deadline` passes while nobody reads."""
        self._read_deadline = deadline
        self.on_expired = then

    # Ending

    def send_end(self) -> None:
        """Tell the peer, once, that nothing more comes; reading goes on."""
        if not self._end_sent:
            self._end_sent = True
            try:
                self._say_end()
            except OSError as error:
                self._break(error)
                return
            if not self._outbox:  # else once it is empty
                self._shut_down()

    def _shut_down(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._break(error)

    async def close(self, *, linger: bool = False) -> None:
        """Send what is unsent and an orderly end, then close.

        `linger`: the peer may still be sending; take and forget a little of it, because a close with
        unread bytes makes the kernel send a reset, and a reset can overtake our last response.
        """
        try:
            if not self.is_clear():
                await self.drain(low=0, high=0)
            self._discarding = True
            if linger:
                self.send_end()
                if self.error is None:
                    await self._linger()
            elif not self._end_sent:
                self._say_end()
            if self._outbox:
                await self.drain(low=0, high=0)
        except (StreamTimeout, OSError):
            pass  # the peer does not want the rest; the socket is closed below all the same
        finally:
            self.shut()

    async def _linger(self) -> None:
        end = self._loop.time() + LINGER_SECONDS
        # Who sends without a pause is never found waiting, so that no deadline of a wait ends it.
        while (now := self._loop.time()) < end and await self.read(min(end, now + LINGER_PAUSE)):
            pass

    def shut(self) -> None:
        """Close the socket now; what the kernel already holds is still delivered."""
        if self._closed:
            return
        self._closed = True
        self._reading = self._writing = False
        self._write_deadline = inf
        self._poller.forget(self._fd)
        self._deadlines.forget(self)
        self.on_lost = self.on_expired = None
        reader, self._reader = self._reader, None  # an error kept here would be a circle, see `_break`
        for waiter in (reader, self._drainer):
            if waiter is not None and not waiter.done():
                waiter.set_exception(StreamClosed("closed"))
        self._close_socket()

    def release(self) -> None:
        """Let go of the socket, which stays open; for somebody who has nothing to wait for here."""
        self._reading = False
        self._poller.remove_reader(self._fd, self._on_readable)
        self._stop_writing()
        self._closed = True
        self._deadlines.forget(self)

    def abort(self) -> None:
        """Close with a reset, so that the peer cannot take what it has for everything."""
        if not self._closed:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            except OSError:
                pass  # already disconnected: there is nobody to reset
            self.shut()

    def peer_alert(self) -> str | None:
        """The TLS alert with which the peer broke the connection; a bare socket has none."""
        return None

    @property
    def closed(self) -> bool:
        return self._closed

    # The socket

    def _recv(self) -> bytes | None:
        """Received bytes, empty at the end of the stream, None when there is nothing now."""
        try:
            return self.sock.recv(READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return None

    def _say_end(self) -> None:
        """What a protocol on top says right before the end; a bare socket says nothing."""

    def _close_socket(self) -> None:
        self.sock.close()


def _poll(fd: int, wanted: int) -> select.poll:
    """For the events `wanted`, and those that nobody can help wanting."""
    poll = select.poll()
    poll.register(fd, wanted)
    return poll
