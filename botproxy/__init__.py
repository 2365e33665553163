"""botproxy: the TLS front door of a bot. This page is the architecture.

Processes

    supervisor            one thread, no event loop; may run as root
      |  owns the listening sockets (an SO_REUSEPORT set for each worker slot, kept over the death
      |  of a worker), the listener's SSLContext (without a certificate; its ticket keys outlive
      |  certificates and workers), the admin socket, the counts and vitals that all share, signals,
      |  forks and replacements. One team serves (`server.team`): a configuration, a keeper, a worker in
      |  each slot. A reload or new ticket keys are a second team that takes over once all of it is
      |  ready; a new version of the program is a successor that inherits the sockets.
      |-- keeper          watches, judges and keeps the certificates, rolls them out to the workers, answers
      |                   the admin socket. The only process that reads private keys from disk.
      |-- worker x N      uvloop: accept, handshake, HTTP, policy, bot. Never root; opens no
      |                   certificate file, gets each pair as a sealed memfd from the keeper.
      '-- reader          for a moment: reads the configuration again, and leaves it in a memfd.

    What they say to each other is small JSON packets over SOCK_SEQPACKET, file descriptors beside them
    (`control`). Every child has a link to the supervisor, whose end tells either side that the other is
    gone. Every worker has a channel to the keeper, of which the supervisor keeps both ends, so that a
    keeper that died is replaced without a worker noticing. A channel belongs to one worker, not to its
    slot: while two of a slot live, nothing meant for one reaches the other.

The road of a certificate

    keeper.watch      something may have changed: the kernel says so, or it is time to look
    keeper.schedule   when to look
    keeper.renewal    reads twice until nothing moves, and from here on one certificate at a time
    keeper.appraisal      tls.rules   what is wrong with it
                          tls.guard   is it worse than the one that is served
                          tls.proof   does OpenSSL serve it, to every name, in every version
    keeper.rollout        prepare     every worker loads and proves it beside the one in use
                          ledger      it is the last good one, on disk
                          commit      every worker flips one reference
                          probes      the listener is asked until every worker has shown it
    keeper.ledger     the audit

    Each certificate is in one state (`keeper.states`); every way out but the last leaves what is served
    as it was. Sets are named by what is in them, so a keeper that was killed anywhere is replaced by one
    that offers the same again, and nothing happens twice.

The road of a request

    server.listener  accept
    server.reception caps, PROXY header, handshake (tls.stream), one ClientConnection
    http.h1          collects a head, makes an Exchange (http.exchange), calls
    proxy.handle         policy.routes     which route                              404 421
                         server.census     may it enter                             429
                         policy.headers    the request as the bot shall see it      400
                         upstream.pool     a kept connection, or
                         upstream.hold     a new one; bot away? wait here           503 504
                         upstream.connection   send, read the head                  502 504
                         policy.headers    the response as the world shall see it
                         http.tunnel       only after a 101
                         observe.access    one record, in one finally
    http.exchange    frames the response

    Down once, up once. The only arrow back is the retry of a request that cannot have reached the bot: a
    failed connect, or a kept connection that turned out to be dead (safe methods without a body only).

Layers, each importing only from those above it or from its own folder (`tests/test_architecture.py`)

    fields                                  the lines of a head
    errors model reasons config.schema      words and values
    policy tls.certificates tls.rules       decisions: values in, values out, no I/O, no clock
    net                                     bytes over sockets, deadlines, the PROXY header
    config tls http observe                 files, handshakes, messages, logs
    control                                 what the processes say to each other
    upstream                                the bot
    proxy                                   one request, in order
    keeper                                  certificates, health
    server                                  processes, listeners
    cli                                     commands

Decisions that shape the rest

    TLS is OpenSSL between two buffers in memory (`tls.stream`), not the loop's transport: less CPU and
    memory for a connection, few system calls, and the peer's alert survives. A certificate is swapped by
    one reference, asked in every handshake; a context in use is never changed. Ticket keys cannot be set
    from Python, so new ones mean a new listener context and new workers forked with it.

    The content of a file decides, never its time. A listener that cannot be reached proves nothing about
    a certificate, so only a wrong answer rolls one back.

    Streams receive as soon as bytes arrive, up to a bound, also while nobody reads, so a client that
    leaves is noticed at once. All deadlines are numbers looked at by one sweep (`net.deadlines`), all
    sockets are in one epoll set inside the loop (`net.poller`), which spares a quarter of the system calls.

    h11 is the grammar, not the policy: strict scanners take canonical heads, h11 the rest, and both are
    followed by the same checks (`http.head`). Lines of a head stay bytes; what follows from their names
    alone, such as which of them pass, is worked out once for each sequence of names (`fields`). The
    chunked coding has a decoder of its own (`http.body`), because h11's is more lenient than a front door
    may be. Property tests hold both to h11's meaning.

    Pydantic judges the configuration in a process of its own, which ends with it (`config.apart`): those
    that serve have its keys as plain frozen data, which spares a sixth of the memory of all of them.

    A connection to the bot belongs to one client (`reuse: client`): one client's broken exchange cannot
    become another's answer.

    Limits on connections and rates hold for the program, not for each worker: their counts live in shared
    memory (`server.census`), a row for each worker, those that drain included.
"""

__version__ = "0.1.0"
