"""A keeper in a process of its own, as the supervisor would fork it; started by `test_process`.

Arguments: the configuration as JSON, the ready and life descriptors, then the channels.
"""

from __future__ import annotations

import json
import logging
import socket
import sys

from botproxy.config.schema import Config
from botproxy.keeper import process
from botproxy.tls.context import listener_context


class Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname} {record.getMessage()} {json.dumps(record.__dict__.get('data'))}"


def main() -> int:
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    config = Config.model_validate(json.loads(sys.argv[1]))
    ready, life, *channels = (int(argument) for argument in sys.argv[2:])
    ends = [socket.socket(fileno=fd) for fd in channels]
    return process.run(config, listener_context(config.tls), ends, ready, life)


if __name__ == "__main__":
    sys.exit(main())
