"""A counter in memory: each request adds one, and is told the sum and who counted."""

import json
import socket
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer


class Counter(BaseHTTPRequestHandler):
    counter = 0

    def do_GET(self):
        Counter.counter += 1
        answer = {"counter": Counter.counter, "hostname": socket.gethostname()}
        body = json.dumps(answer).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


TCPServer.allow_reuse_address = True
with TCPServer(("", 8080), Counter) as server:
    print("counter: listening on port 8080", flush=True)
    server.serve_forever()
