"""Are descriptors and memory flat over many reloads?

Run `python -m bench.reload.flat [RELOADS]` (1 000 by default, about five minutes). Every
reload finds a new certificate and is waited for, as `botproxy cert reload --wait` does.
Prints what each process holds after each tenth; exits with 1 when the new certificate was
not served by every worker after a reload, when a process was replaced, or when one holds
more at the end than after the first fifth (warm-up) plus a small tolerance.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from botproxy.cli.ask import ask
from tests import certs
from tests.certs import Issued
from tests.harness import Bot, Proxied, descriptors_of, free_port, rss_of, running

WORKERS = 2
PATIENCE = 30.0
TOLERATED_BYTES = 2 * 1024 * 1024
TOLERATED_DESCRIPTORS = 4

Held = Mapping[int, tuple[int, int]]
"""Descriptors and resident bytes of each process."""


def main(total: int) -> int:
    authority = certs.root().intermediate()
    with tempfile.TemporaryDirectory() as name, Bot() as bot:
        directory = Path(name)
        pair = authority.issue("localhost").write(directory)
        config = {
            "listen": [f"127.0.0.1:{free_port()}"],
            "plain_listen": [],
            "workers": WORKERS,
            "certificates": [{"chain": pair.chain, "key": pair.key}],
            "upstreams": {"bot": {"url": bot.url}},
            "state_dir": f"{name}/state",
        }
        with running(config, directory) as proxied:
            names = {proxied.process.pid: "supervisor", **proxied.children()}
            print(f"{'reloads':>8}  {'  '.join(f'{names[pid]:>21}' for pid in names)}  seconds for each")
            samples: list[Held] = []
            for _ in range(10):
                began = time.monotonic()
                for _ in range(total // 10):
                    if (problem := _reload(directory, authority.issue("localhost"))) is not None:
                        print(problem)
                        return 1
                spent = (time.monotonic() - began) / (total // 10)
                samples.append(_held(proxied))
                if samples[-1].keys() != names.keys():
                    print(f"processes were replaced: {sorted(names)} became {sorted(samples[-1])}")
                    return 1
                _print(len(samples) * (total // 10), samples[-1], list(names), spent)
            grown = [names[pid] for pid in names if not _is_flat(samples[1][pid], samples[-1][pid])]
            complaints = [line for line in proxied.log.lines if "level=info" not in line]
    for line in complaints[:20]:
        print(line)
    print(f"not flat: {', '.join(grown)}" if grown else "flat")
    return 1 if grown else 0


# Private


def _reload(directory: Path, issued: Issued) -> str | None:
    """Why the reload to `issued` did not end as it must; None if it did."""
    for file, data in (("site.pem", issued.chain_pem), ("site.key", issued.key_pem)):
        fresh = directory / f"{file}.new"
        fresh.touch(mode=0o600)
        fresh.write_bytes(data)
        fresh.rename(directory / file)
    admin = f"unix:{directory}/state/admin.sock"
    answer = ask(None, admin, "/-/reload?wait=1", "POST", PATIENCE)
    (change,) = answer["certificates"]
    # unchanged: the kernel told of the files before we did.
    if change["outcome"] not in ("active", "unchanged"):
        return f"a reload ended otherwise: {change}"
    (served,) = ask(None, admin, "/-/certificates")["certificates"]
    if int(served["serial"], 16) != issued.leaf.serial_number or served["served_by"] != WORKERS:
        return f"a reload said {change['outcome']}, and not every worker serves the new one: {served}"
    return None


def _held(proxied: Proxied) -> Held:
    pids = (proxied.process.pid, *proxied.children())
    return {pid: (descriptors_of(pid), rss_of(pid)) for pid in pids}


def _is_flat(warm: tuple[int, int], last: tuple[int, int]) -> bool:
    return last[0] <= warm[0] + TOLERATED_DESCRIPTORS and last[1] <= warm[1] + TOLERATED_BYTES


def _print(done: int, held: Held, order: list[int], spent: float) -> None:
    columns = [f"{held[pid][0]:>8} fd {held[pid][1] / 1024**2:>6.1f} MiB" for pid in order]
    print(f"{done:>8}  {'  '.join(columns)}  {spent:.3f}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000))
