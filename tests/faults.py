"""Faults between a client and a real server: a proxy that delays, cuts, damages, answers in the server's place, or is away.

    with faults.Proxy(server_address) as proxy:
        proxy.inject(faults.Fault(cut_at=1000), method="GET", path="/bucket/", times=2)
        ...  # the client is given proxy.address
        assert proxy.injected == 2

It speaks HTTP, so that a fault can be aimed at one kind of request, and passes on what it gets byte for byte: signatures
that cover the host's name stay valid. What it passes on is never whole in memory.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_BLOCK = 2**16


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with one request and its answer.

    Attributes:
        delay: seconds before anything else happens.
        rate: bytes of the answer's body a second; 0: as fast as they come.
        answer: status and body of an answer in the server's place; the server does not see the request.
        drop: the connection is reset; the server does not see the request.
        cut_request_at: the same, after so many bytes of the request's body have been read.
        damage_request: one byte of the request's body becomes another.
        lose_answer: the server does what it is asked, and the connection is reset in place of its answer.
        cut_at: the connection is reset after so many bytes of the answer's body.
        damage: one byte of the answer's body becomes another.
    """

    delay: float = 0.0
    rate: float = 0.0
    answer: tuple[int, bytes] | None = None
    drop: bool = False
    cut_request_at: int | None = None
    damage_request: bool = False
    lose_answer: bool = False
    cut_at: int | None = None
    damage: bool = False


SLOW_DOWN = Fault(answer=(503, b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"))
NONE = Fault()


class _ResetError(Exception):
    """Ends a connection without a word."""


@dataclass
class _Rule:
    fault: Fault
    method: str
    path: re.Pattern[str]
    left: int | None


@dataclass
class Proxy:
    """A proxy for one server, on a port of the loopback interface. Without a fault it changes nothing.

    Attributes:
        target: the server, as http://HOST:PORT.
        certificate: PEM file with certificate and key, to serve https.
        requests: method and path of all that came, in order.
        injected: how many requests met a fault.
        at_once: the most requests that were under way at one time.
    """

    target: str
    certificate: Path | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    injected: int = 0
    at_once: int = 0

    def __post_init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._port = 0
        self._under_way = 0

    @property
    def address(self) -> str:
        """What a client is to be given."""
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self._port}"

    def inject(self, fault: Fault, *, method: str = "", path: str = "", times: int | None = 1) -> None:
        """Let the next requests of a kind meet a fault. Of several that apply, the one injected first is met first.

        Args:
            method: such as "GET"; default: any.
            path: regular expression, searched in the path with its query.
            times: how many; None: all from now on.
        """
        with self._lock:
            self._rules.append(_Rule(fault, method, re.compile(path), times))

    def clear(self) -> None:
        """No more faults, and nothing counted."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()
            self.injected = self.at_once = 0

    def down(self) -> None:
        """The server is away: connections are reset, new ones refused."""
        if self._server is not None:
            self._server.end()
            self._server = None

    def up(self) -> None:
        """It is back, at the same address."""
        if self._server is None:
            self._server = _Server(self, self._port)
            self._port = self._server.server_address[1]

    def __enter__(self) -> Proxy:
        self.up()
        return self

    def __exit__(self, *failure: object) -> None:
        self.down()

    @contextlib.contextmanager
    def under_way(self) -> Iterator[None]:
        """Count a request that is under way."""
        with self._lock:
            self._under_way += 1
            self.at_once = max(self.at_once, self._under_way)
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1

    def meet(self, method: str, path: str) -> Fault:
        """The fault that this request is to meet."""
        with self._lock:
            self.requests.append((method, path))
            for rule in self._rules:
                if rule.left != 0 and rule.method in ("", method) and rule.path.search(path):
                    if rule.left is not None:
                        rule.left -= 1
                    self.injected += 1
                    return rule.fault
        return NONE


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: Proxy, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.proxy = proxy
        self._open: set[socket.socket] = set()
        self._context: ssl.SSLContext | None = None
        if proxy.certificate is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(proxy.certificate)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self._context is not None:
            request.settimeout(30)
            request = self._context.wrap_socket(request, server_side=True)
        self._open.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            self._open.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nobody's error here."""

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                _reset(connection)
        self._thread.join(10)


def _reset(connection: socket.socket) -> None:
    # To close with a linger time of 0 sends RST, as the system of a process that has died does.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.shutdown(socket.SHUT_RD)
    connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (_ResetError, OSError, http.client.HTTPException):
            self.close_connection = True
            with contextlib.suppress(OSError):
                _reset(self.connection)

    def log_message(self, *args: Any) -> None:
        """The tests look at `Proxy.requests`."""

    def _exchange(self) -> None:
        with self.server.proxy.under_way():
            self._answer()

    def _answer(self) -> None:
        fault = self.server.proxy.meet(self.command, self.path)
        if fault.delay:
            time.sleep(fault.delay)
        if fault.drop:
            raise _ResetError
        if fault.answer is not None:
            for _ in self._body():
                pass
            status, body = fault.answer
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command != "HEAD" else b"")
            return
        url = urlsplit(self.server.proxy.target)
        with contextlib.closing(http.client.HTTPConnection(url.hostname or "", url.port, timeout=120)) as onward:
            onward.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    onward.putheader(name, value)
            onward.endheaders()
            for block in _faulty(self._body(), fault.cut_request_at, fault.damage_request):
                onward.send(block)
            answer = onward.getresponse()
            if fault.lose_answer:
                raise _ResetError
            self._pass_on(answer, fault)

    def _body(self) -> Iterator[bytes]:
        """The request's body, as it came: a chunked one with the lengths of its chunks."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while True:
                line = self.rfile.readline()
                size = int(line.split(b";")[0], 16)
                yield line + self.rfile.read(size + 2)
                if size == 0:
                    return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            block = self.rfile.read1(min(left, _BLOCK))  # type: ignore[attr-defined]
            if not block:
                raise _ResetError
            left -= len(block)
            yield block

    def _pass_on(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
        self.send_response_only(answer.status, answer.reason)
        length = answer.getheader("Content-Length")
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if length is None and self.command != "HEAD" and answer.status not in (204, 304):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        for block in _faulty(iter(lambda: answer.read1(_BLOCK), b""), fault.cut_at, fault.damage):
            self.wfile.write(block)
            if fault.rate:
                time.sleep(len(block) / fault.rate)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = do_OPTIONS = _exchange  # noqa: N815


def _faulty(blocks: Iterator[bytes], cut_at: int | None, damage: bool) -> Iterator[bytes]:
    passed = 0
    for block in blocks:
        sent = block
        if damage:
            middle = len(block) // 2
            sent = block[:middle] + bytes([block[middle] ^ 1]) + block[middle + 1 :]
            damage = False
        if cut_at is not None and passed + len(block) >= cut_at:
            yield sent[: cut_at - passed]
            raise _ResetError
        passed += len(block)
        yield sent


def make_certificate(path: Path) -> Path:
    """Write a certificate of 127.0.0.1, signed by itself, with its key, to a PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.touch(0o600)
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path
