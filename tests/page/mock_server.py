"""A server that speaks as `codecllm serve` does and says what a test tells it to: errors, delays, cuts and restarts included.

It serves the page under the strictest Content-Security-Policy that the page must work under.
"""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "src/serve/page/index.html"
ANSWER = ["The ", "weights ", "stay ", "coded ", "in ", "memory."]
MODEL = "a-model-of-135M"


def policy(page: str) -> str:
    """The page's one style and one script by their hashes, its own icon, its own server to talk to, and nothing else."""

    def only(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        if len(found) != 1 or len(re.findall(rf"<{tag}\b", page)) != 1:
            raise AssertionError(f"{PAGE}: {len(found)} <{tag}>, 1 is wanted: its hash goes into the policy")
        return base64.b64encode(hashlib.sha256(found[0].encode()).digest()).decode()

    return (
        f"default-src 'none'; connect-src 'self'; img-src data:; style-src 'sha256-{only('style')}'; script-src 'sha256-{only('script')}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@dataclass
class Refusal:
    """An answer in OpenAI's JSON form that is no answer of the model."""

    status: int
    message: str
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        return json.dumps({"error": {"message": self.message, "type": "error", "code": self.code}}).encode()


@dataclass
class Script:
    """What the server does with the next questions."""

    tokens: list[str] = field(default_factory=lambda: list(ANSWER))
    first_after: float = 0.05  # seconds before the first token
    token_after: float = 0.05  # seconds before each one behind it
    finish_reason: str = "stop"
    cut_after: int | None = None  # ends the connection behind so many tokens
    end_after: int | None = None  # ends the answer behind so many tokens, without a reason
    error_after: int | None = None  # sends an error as an event behind so many tokens
    refusal: Refusal | None = None
    key: str | None = None
    model: str = MODEL
    stats: dict[str, object] | None = field(
        default_factory=lambda: {
            "running": 1,
            "waiting": 0,
            "tokens_per_second": 41.5,
            "weight_bytes": 98_400_000,
            "cache_bytes": 23_600_000,
            "rss_bytes": 512_000_000,
            "context": 2048,
        }
    )


class MockServer:
    """Runs on a thread, on one port for its whole life, through any number of stops and starts."""

    def __init__(self) -> None:
        self.script = Script()
        self.requests: list[dict] = []  # bodies of questions
        self.sent: list[float] = []  # when each token was sent, of the last question
        self.left = threading.Event()  # a client went away in the middle of an answer
        self.port = 0
        self._open: set[socket.socket] = set()
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.mock = self
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """As if it was killed: what it was saying is cut."""
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it ended by itself


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    mock: MockServer

    def process_request_thread(self, request: socket.socket, client_address: object) -> None:
        self.mock._open.add(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.mock._open.discard(request)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that left


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *arguments: object) -> None:
        pass

    @property
    def mock(self) -> MockServer:
        return self.server.mock

    def reply(self, status: int, body: bytes, content_type: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, refusal: Refusal) -> None:
        self.reply(refusal.status, refusal.body(), **refusal.headers)

    def without_key(self) -> bool:
        key = self.mock.script.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return False
        self.refuse(Refusal(401, "the key of the request is not one of this server's", "invalid_api_key"))
        return True

    def do_GET(self) -> None:
        stats = self.mock.script.stats
        if self.path == "/":
            page = PAGE.read_text()
            self.reply(200, page.encode(), "text/html; charset=utf-8", Content_Security_Policy=policy(page))
        elif self.path == "/health":
            self.reply(200, b'{"status":"ok"}')
        elif self.path == "/v1/models" and not self.without_key():
            self.reply(200, json.dumps({"object": "list", "data": [{"id": self.mock.script.model, "object": "model"}]}).encode())
        elif self.path == "/stats" and stats is not None and not self.without_key():
            self.reply(200, json.dumps(stats).encode())
        elif self.path not in ("/v1/models", "/stats") or (self.path == "/stats" and stats is None):
            self.refuse(Refusal(404, f"{self.path}: nothing is here"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.mock.requests.append(body)
        if self.without_key():
            return
        if body["model"] != self.mock.script.model:
            self.refuse(Refusal(404, f"there is no {body['model']} here", "model_not_found"))
            return
        if self.mock.script.refusal:
            self.refuse(self.mock.script.refusal)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self.stream(self.mock.script)
        except OSError:
            self.mock.left.set()
            self.close_connection = True

    def stream(self, script: Script) -> None:
        self.mock.sent = []
        self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]})
        for at, token in enumerate(script.tokens):
            self.wait(script.token_after if at else script.first_after)
            if at == script.cut_after:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if at == script.end_after:
                self.chunk(b"")
                return
            if at == script.error_after:
                self.event({"error": {"message": "the engine met an error", "type": "server_error", "code": None}})
                return
            self.mock.sent.append(time.time())
            self.event({"choices": [{"index": 0, "delta": {"content": token}, "finish_reason": None}]})
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": script.finish_reason}]})
        tokens = len(script.tokens)
        usage = {"prompt_tokens": 12, "completion_tokens": tokens, "total_tokens": 12 + tokens}
        self.event({"choices": [], "usage": usage})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def wait(self, seconds: float) -> None:
        """Notices within it that the client went away, as a server does that reads its connections."""
        self.connection.settimeout(max(seconds, 0.001))
        try:
            if self.connection.recv(1, socket.MSG_PEEK) == b"":
                raise ConnectionResetError
        except TimeoutError:
            pass
        finally:
            self.connection.settimeout(None)

    def event(self, data: dict) -> None:
        """In two pieces, cut in the middle of a character where one has several bytes."""
        event = f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
        middle = next((at for at, byte in enumerate(event) if 0x80 <= byte < 0xC0), len(event) // 2)
        self.chunk(event[:middle])
        self.chunk(event[middle:])

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()
