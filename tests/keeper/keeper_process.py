"""A keeper in a process of its own, as the supervisor would fork it; started by `test_process`.

Argument: a JSON object with the configuration, the descriptors of link and admin socket, where
the listener is, and how much shorter than usual the keeper waits for workers.
"""

from __future__ import annotations

import json
import logging
import socket
import sys

from botproxy.config.schema import Config
from botproxy.control.vitals import Pulse, Vitals
from botproxy.keeper import process, rollout
from botproxy.keeper.probes import Endpoint
from botproxy.tls.context import listener_context


class Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname} {record.getMessage()} {json.dumps(record.__dict__.get('data'))}"


def main() -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    given = json.loads(sys.argv[1])
    for name, seconds in given["patience"].items():
        setattr(rollout, name, seconds)
    config = Config.model_validate(given["config"])
    port, admin = given["port"], given["admin"]
    return process.run(
        config,
        listener_context(config.tls),
        None if port is None else Endpoint(socket.AF_INET, ("127.0.0.1", port), False, False),
        socket.socket(fileno=given["control"]),
        None if admin is None else socket.socket(fileno=admin),
        slots=1,
        pulse=Pulse(Vitals(1), 0),
    )


if __name__ == "__main__":
    sys.exit(main())
