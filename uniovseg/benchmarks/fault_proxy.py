"""A proxy between S3 clients and a store on this machine that adds what networks and stores do: errors, cuts, resets, delays, and whole outages.

The proxy is a process of its own that uses the standard library alone; it ends when the one that started it does. One request a connection. Which
requests are hit is drawn from the seed, the request and how often that came, so that it does not depend on the order in which requests arrive, and a
request that is tried again is drawn again.
"""

import asyncio
import json
import random
import socket
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FAULTS = ("500", "503", "reset", "cut", "delay")
"""InternalError; SlowDown; the connection is reset, before or after the store has done what it was asked; half the answer's bytes; a late answer."""

ERRORS = {"500": ("Internal Server Error", "InternalError"), "503": ("Slow Down", "SlowDown")}

SIZE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to requests.

    Attributes:
        share: fraction of the requests that are hit by one of `faults`.
        faults: from `FAULTS`, each as likely as the others.
        seed: of the draw.
        delay: seconds of a ``delay``.
        latency: seconds that every request is late.
        away: connections are refused, and those that stand are reset.
    """

    share: float = 0.0
    faults: tuple[str, ...] = FAULTS
    seed: int = 0
    delay: float = 2.0
    latency: float = 0.0
    away: bool = False


class FaultProxy:
    """Starts the proxy before a store and steers it.

    Args:
        upstream: URL of the store, http://host:port.
        weather: what happens at first.
    """

    def __init__(self, upstream: str, weather: Weather | None = None) -> None:
        command = [sys.executable, str(Path(__file__)), upstream.removeprefix("http://")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        self.weather = Weather()
        self.endpoint = f"http://127.0.0.1:{self._ask({})['port']}"
        self.set(weather or Weather())

    def set(self, weather: Weather) -> None:
        """Change what happens; it holds for requests that come after this call."""
        self.weather = weather
        self._ask(asdict(weather))

    def counts(self) -> dict[str, int]:
        """Requests so far (``requests``), and those that were hit by each fault."""
        return {name: count for name, count in self._ask({}).items() if name != "port"}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, message: dict[str, object]) -> dict[str, int]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()
        answer: dict[str, int] = json.loads(self._process.stdout.readline())
        return answer


@dataclass(frozen=True, slots=True)
class _Request:
    """A request as it came: its first line, its header lines, its body."""

    line: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    @property
    def identity(self) -> str:
        """What is asked for: equal when it is asked for again."""
        return f"{self.line} {self.header('range')}"

    def encoded(self) -> bytes:
        """What goes to the store: the same, for one answer."""
        kept = [f"{key}: {value}" for key, value in self.headers if key.lower() not in ("connection", "expect")]
        return "\r\n".join([self.line, *kept, "Connection: close", "", ""]).encode("latin1") + self.body


class _Proxy:
    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.partition(":")
        self._upstream = (host, int(port))
        self._weather = Weather()
        self._seen: Counter[str] = Counter()
        self._clients: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.counts: Counter[str] = Counter()
        self.port = 0

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=SIZE, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def change(self, changes: dict[str, object]) -> None:
        self._weather = replace(self._weather, **changes)  # type: ignore[arg-type]
        if self._weather.away and self._server is not None:
            self._server.close()
            for client in list(self._clients):
                _reset(client)
            self._server = None
        elif not self._weather.away and self._server is None:
            await self.listen()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            await self._answer(await _read_request(reader, writer), writer)
        except (OSError, EOFError):  # the client, or the store, has gone
            pass
        finally:
            self._clients.discard(writer)
            writer.close()

    def _draw(self, request: _Request) -> tuple[str, random.Random]:
        """The fault that hits this request, if any, and what decides its details."""
        weather = self._weather
        self._seen[request.identity] += 1
        rng = random.Random(f"{weather.seed} {request.identity} {self._seen[request.identity]}")
        return (rng.choice(weather.faults) if rng.random() < weather.share else ""), rng

    async def _answer(self, request: _Request, writer: asyncio.StreamWriter) -> None:
        fault, rng = self._draw(request)
        self.counts["requests"] += 1
        if fault:
            self.counts[fault] += 1
        await asyncio.sleep(self._weather.latency + (self._weather.delay if fault == "delay" else 0.0))
        if fault in ERRORS:
            writer.write(_error(fault))
            await writer.drain()
            return
        if fault == "reset" and rng.random() < 0.5:
            _reset(writer)
            return
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._upstream, limit=SIZE)
        try:
            upstream_writer.write(request.encoded())
            await upstream_writer.drain()
            head = await upstream_reader.readuntil(b"\r\n\r\n")
            if fault == "reset":
                await upstream_reader.read()
                _reset(writer)
                return
            writer.write(head)
            await _forward(upstream_reader, writer, _body_length(head) // 2 if fault == "cut" else None)
        finally:
            upstream_writer.close()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")[:-2]
    pairs = tuple((key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in head[1:]))
    request = _Request(head[0], pairs, b"")
    if "100-continue" in request.header("expect").lower():
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    if "chunked" in request.header("transfer-encoding").lower():
        return replace(request, body=await _read_chunks(reader))
    return replace(request, body=await reader.readexactly(int(request.header("content-length") or 0)))


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body as it came, with the chunks' sizes."""
    body = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        count = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(count + 2)
        if count == 0:
            return bytes(body)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, most: int | None) -> None:
    """The body as it comes; no more than `most` bytes of it."""
    while data := await reader.read(SIZE if most is None else min(SIZE, most)):
        writer.write(data)
        await writer.drain()
        most = None if most is None else most - len(data)


def _body_length(head: bytes) -> int:
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(lengths[0]) if lengths else 0


def _error(status: str) -> bytes:
    reason, code = ERRORS[status]
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>drawn by the proxy</Message></Error>'
    return (f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}").encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection so that the other side sees it reset."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _main(upstream: str) -> None:
    """Serve until the standard input ends; each line of it changes the weather and is answered with the port and the counts."""
    proxy = _Proxy(upstream)
    await proxy.listen()
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        await proxy.change(json.loads(line))
        sys.stdout.write(json.dumps({"port": proxy.port, **proxy.counts}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
