"""A raw server on a loopback socket: a test says, byte by byte, what a connection answers."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Self

Answer = Callable[["Conversation"], bool | None]


class Conversation:
    """One request and the socket to answer it on."""

    def __init__(self, server: Server, sock: socket.socket, number: int, head: bytes, body: bytes) -> None:
        self.server, self.sock, self.number, self.head, self.body = server, sock, number, head, body

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reply(self, body: bytes = b"", *headers: bytes, status: bytes = b"200 OK") -> None:
        lines = [b"HTTP/1.1 " + status, *headers, b"content-length: %d" % len(body)]
        self.send(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def stream(self, *headers: bytes) -> None:
        lines = [b"HTTP/1.1 200 OK", b"content-type: text/event-stream", *headers, b"transfer-encoding: chunked"]
        self.send(b"\r\n".join(lines) + b"\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        """Send one chunk; an empty one ends the body."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def reset(self) -> bool:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    def wait_for_close(self, seconds: float = 60.0) -> bool:
        """Wait until the client closes; True if it did."""
        self.sock.settimeout(seconds)
        try:
            while self.sock.recv(4096):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        return True


class Server:
    """Serves ``answer`` on every request, each connection in a thread. ``answer`` returns False to hang up."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.closed: queue.Queue[bool] = queue.Queue()  # what conversations put there, for tests to wait on
        self._lock = threading.Lock()
        self._tls = tls
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://localhost:{self.port}/v1/chat"
        if tls is None:
            self.url = f"http://127.0.0.1:{self.port}/v1/chat"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def wait_until_idle(self, seconds: float = 60.0) -> None:
        """Wait until every connection is closed."""
        pause = threading.Event()
        for _ in range(int(seconds / 0.005)):
            if not self.open:
                return
            pause.wait(0.005)
        raise AssertionError(f"{self.open} connections are still open")

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        with self._lock:
            self.connections += 1
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            self._sockets.add(sock)
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                self._converse(sock)
        except OSError:
            pass
        finally:
            sock.close()
            with self._lock:
                self.open -= 1
                self._sockets.discard(sock)

    def _converse(self, sock: socket.socket) -> None:
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                data = sock.recv(65536)
                if not data:
                    return
                buffer += data
                if buffer.startswith(b"\x16"):  # TLS, where none is spoken
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    return
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
            )
            pieces = [buffer]
            missing = length - len(buffer)
            while missing > 0:
                data = sock.recv(1 << 20)
                if not data:
                    return
                pieces.append(data)
                missing -= len(data)
            whole = b"".join(pieces)
            body, buffer = whole[:length], whole[length:]
            with self._lock:
                number = len(self.heads)
                self.heads.append(head)
                self.bodies.append(body)
            if self.answer(Conversation(self, sock, number, head, body)) is False:
                return
