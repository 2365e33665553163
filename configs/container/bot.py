"""A bot for trying the containers: says to every request what it got. Needs nothing but Python."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        received = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        says = {"path": self.path, "bytes": len(received), "client": self.headers.get("X-Real-IP")}
        body = json.dumps(says).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST


if __name__ == "__main__":
    # Alone in its container it answers botproxy from outside; as botproxy's child nobody else needs it.
    ThreadingHTTPServer((os.environ.get("BOT_HOST", "0.0.0.0"), 8000), Answer).serve_forever()
