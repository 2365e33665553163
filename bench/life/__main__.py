"""Requests at a constant rate while configuration, program and workers change under them.

Run `python -m bench.life` (20 000 requests, about two minutes): fifty SIGHUPs with a changed
configuration, five upgrades by SIGUSR2, and every five seconds a worker is killed with SIGKILL.
Half of the clients keep their connection, half make a new one for each request. A client whose
connection was there when a worker was killed, and which fails within a second of it, was in flight on
that worker: those are counted apart. Every other failure fails the run (exit 1).

`python -m bench.life soak [MINUTES]` (30 by default): 50 requests/s and a reload every ten seconds;
prints resident memory and descriptors of every kind of process each minute, and exits with 1 when
memory of all together grows by more than 1 MB/h or descriptors do.
"""

from __future__ import annotations

import sys

from bench.life import soak, turmoil

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["soak"]:
        sys.exit(soak.main(float(arguments[1]) if len(arguments) > 1 else 30.0))
    sys.exit(turmoil.main(int(arguments[0]) if arguments else 20_000))
