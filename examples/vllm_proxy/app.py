"""The ASGI application: prefill goes to P, decoding to D, and the answer's bytes back as they come.

No framework: three messages in (body, disconnect), two out (start, body). Whatever ends a request early
(an error, a time limit, a client that is gone) cancels its task, whose ``finally`` closes the upstream
connection, so that vLLM aborts the request, and takes it out of the chooser.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from dualpath_model.errors import InfeasibleError, InputError
from dualpath_model.routing import Engine, Route, RoutingFile
from examples.vllm_proxy.choose import Asked, Chooser
from examples.vllm_proxy.messages import (
    RANK_HEADER,
    SESSION_HEADER,
    Body,
    StreamReader,
    answered,
    decode_body,
    prefill_body,
    session_of,
    without_params,
)
from examples.vllm_proxy.metrics import Metrics
from examples.vllm_proxy.sessions import Sessions

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PATHS = ("/v1/completions", "/v1/chat/completions")
_ATTEMPTS = 3
_LOOK_S = 1.0
_KEPT_S = 480.0
"""vLLM's own ``decoder_kv_blocks_ttl`` where the export gives none."""
_PASSED = ("authorization", "x-request-id", SESSION_HEADER, "x-priority")


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: to connect, for a whole prefill, between two parts of an answer, in the queue; bytes of a
    request.
    """

    connect_s: float = 5.0
    prefill_s: float = 600.0
    decode_s: float = 300.0
    queue_s: float = 120.0
    body_bytes: int = 64_000_000


class RefusedError(Exception):
    """An answer other than the decode server's: ``status`` with a message, or a server's own words."""

    def __init__(self, status: int, outcome: str, message: str, body: bytes | None = None) -> None:
        """Keep what is to be said. ``outcome``: what it counts as."""
        super().__init__(message)
        self.status, self.outcome, self.body = status, outcome, body

    def content(self) -> bytes:
        """Return the answer as OpenAI's clients read it."""
        if self.body is not None:
            return self.body
        error = {"message": str(self), "type": self.outcome, "code": self.status}
        return json.dumps({"error": error}).encode()


class UnreachableError(RefusedError):
    """A server that no connection can be made to: nothing has been done, so another may be asked."""

    def __init__(self, url: str, message: str) -> None:
        """Keep whose it is."""
        super().__init__(502, "upstream_error", message)
        self.url = url


class Proxy:
    """The application. ``split`` is only what ``/metrics`` compares with."""

    def __init__(
        self,
        routing: RoutingFile,
        chooser: Chooser,
        sessions: Sessions,
        *,
        split: float,
        limits: Limits | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        """Take what decides and what remembers; nothing is connected yet."""
        self.routing, self.chooser, self.sessions = routing, chooser, sessions
        self.split = split
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.engines = {engine.engine: engine for engine in (*routing.prefill, *routing.decode)}
        self.lost: dict[str, asyncio.Task[None]] = {}
        """Servers that cannot be reached, with the task that looks for them."""
        self.client = client or httpx.AsyncClient(
            # vLLM closes a connection that is idle for 5 s: never use one that it may be closing
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0
            )
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection's request, or the server's start and end."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            else:
                for task in self.lost.values():
                    task.cancel()
                await self.client.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        asked = (scope["method"], scope["path"])
        if asked == ("GET", "/health"):
            await _answer(send, 200, json.dumps(await self._health()).encode())
        elif asked == ("GET", "/metrics"):
            text = self.metrics.text(self.split, self.sessions).encode()
            await _answer(send, 200, text, b"text/plain; version=0.0.4; charset=utf-8")
        elif asked == ("GET", "/v1/models"):
            await self._models(scope, send)
        elif scope["path"] not in PATHS:
            error = RefusedError(
                404, "not_found", f"there is no {scope['path']}; POST to {PATHS[1]}"
            )
            await _answer(send, 404, error.content())
        elif scope["method"] != "POST":
            error = RefusedError(405, "bad_method", f"{scope['path']} takes POST only")
            await _answer(send, 405, error.content())
        else:
            await self._watched(scope, receive, send)

    async def _alive(self, url: str) -> bool:
        try:
            response = await self.client.get(f"{url}/health", timeout=self.limits.connect_s)
        except httpx.HTTPError:
            return False
        return response.status_code == 200

    def _lose(self, url: str) -> None:
        """Take a server's engines out until it answers again."""
        if url not in self.lost:
            self.lost[url] = asyncio.create_task(self._look_for(url))
            for engine in self._of_server(url):
                self.chooser.lost(engine)

    async def _look_for(self, url: str) -> None:
        while not await self._alive(url):
            await asyncio.sleep(_LOOK_S)
        del self.lost[url]
        for engine in self._of_server(url):
            self.chooser.joined(engine)

    def _of_server(self, url: str) -> list[str]:
        return [name for name, engine in self.engines.items() if engine.url == url]

    async def _health(self) -> dict[str, Any]:
        """Return which servers answer; the proxy itself does as long as this comes back."""
        found: dict[str, Any] = {"status": "ok"}
        for pool, engines in (("prefill", self.routing.prefill), ("decode", self.routing.decode)):
            urls = sorted({engine.url for engine in engines})
            answers = await asyncio.gather(*map(self._alive, urls))
            found[pool] = dict(zip(urls, answers, strict=True))
            if not any(answers):
                found["status"] = "unavailable"
        return found

    async def _models(self, scope: MutableMapping[str, Any], send: Send) -> None:
        try:
            response = await self.client.get(
                f"{self.routing.decode[0].url}/v1/models",
                headers=_headers(scope),
                timeout=self.limits.connect_s,
            )
            await _answer(send, response.status_code, response.content)
        except httpx.HTTPError as error:
            refused = _failed(error, self.routing.decode[0], "decode")
            await _answer(send, refused.status, refused.content())

    # ---- one completion --------------------------------------------------------------------------

    async def _watched(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve a completion until it is done or its client is gone."""
        try:
            body = await _read(receive, self.limits.body_bytes)
        except RefusedError as refused:
            self.metrics.outcomes[refused.outcome] += 1
            if refused.status:
                await _answer(send, refused.status, refused.content())
            return
        self.metrics.running += 1
        work = asyncio.create_task(self._complete(scope, body, send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                self.metrics.outcomes["disconnected"] += 1
            with suppress(asyncio.CancelledError):
                await work
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.wait({work, gone})
            self.metrics.running -= 1

    async def _complete(self, scope: MutableMapping[str, Any], body: Body, send: Send) -> None:
        sending = _Sending(send)
        try:
            await self._retried(scope, body, sending)
            self.metrics.outcomes["ok"] += 1
        except RefusedError as refused:
            self.metrics.outcomes[refused.outcome] += 1
            await sending.refuse(refused)

    async def _retried(
        self, scope: MutableMapping[str, Any], body: Body, sending: _Sending
    ) -> None:
        """Ask others while servers cannot be reached, up to three times."""
        for attempt in range(_ATTEMPTS):
            try:
                await self._both(scope, body, sending)
            except UnreachableError as error:
                self._lose(error.url)
                if attempt == _ATTEMPTS - 1 or sending.begun:
                    raise
            else:
                return

    async def _both(self, scope: MutableMapping[str, Any], body: Body, sending: _Sending) -> None:
        headers = _headers(scope)
        headers.setdefault("x-request-id", uuid.uuid4().hex)
        name = uuid.uuid4().hex
        session = session_of(headers, body) or name
        prompt, hits = self.sessions.tokens(session, body)
        asked = Asked(name, session, prompt, hits)
        async with self._route(asked) as route:
            known = self.sessions.add(session, route.through_decode)
            self.metrics.routed(route.through_decode, hits, route.prefill, route.decode)
            kept = None
            if self.routing.decode_reads == "pull" and route.through_decode:
                kept = known.kept if known.kept_until > _now() else None
            known.kept = None  # blocks can be pulled once
            decode = self.engines[route.decode]
            tagged = route.through_decode and self.routing.decode_reads == "p2p"
            handed = await self._prefill(
                scope["path"],
                self.engines[route.prefill],
                headers,
                prefill_body(
                    body, source=decode if tagged else None, kv_request_id=name, kept=kept
                ),
            )
            self.chooser.prefilled(asked)
            reader = await self._decode(
                scope["path"], decode, headers, decode_body(body, handed), sending
            )
        self.sessions.learn(session, body, reader.found, reader.events)
        if self.routing.decode_reads == "pull" and reader.found.kv_transfer_params:
            known.kept = reader.found.kv_transfer_params
            known.kept_until = _now() + (self.routing.keep_s or _KEPT_S)

    @asynccontextmanager
    async def _route(self, asked: Asked) -> AsyncIterator[Route]:
        """Hold a request's place from the choice to its end."""
        try:
            try:
                route = await asyncio.wait_for(self.chooser.choose(asked), self.limits.queue_s)
            except TimeoutError:
                raise RefusedError(
                    503,
                    "unplaced",
                    f"no engine had room within {self.limits.queue_s:g} s; try later",
                ) from None
            except InputError as error:
                raise RefusedError(400, "bad_request", str(error)) from None
            except InfeasibleError as error:
                raise RefusedError(503, "unplaced", str(error)) from None
            yield route
        finally:
            self.chooser.finished(asked)

    async def _prefill(
        self, path: str, engine: Engine, headers: dict[str, str], body: Body
    ) -> Body:
        """Return what the prefill server hands on."""
        limits = httpx.Timeout(self.limits.prefill_s, connect=self.limits.connect_s, pool=None)
        try:
            response = await self.client.post(
                f"{engine.url}{path}", json=body, headers=_of(engine, headers), timeout=limits
            )
        except httpx.HTTPError as error:
            raise _failed(error, engine, "prefill") from None
        if response.status_code != 200:
            raise _refusal(response.status_code, response.content, engine, "prefill")
        try:
            params = response.json().get("kv_transfer_params")
        except (ValueError, AttributeError):
            params = None
        if not isinstance(params, dict):
            raise RefusedError(
                502,
                "upstream_error",
                f"prefill server {engine.url} returned no kv_transfer_params; start it with the "
                f"--kv-transfer-config of the export",
            )
        return params

    async def _decode(
        self, path: str, engine: Engine, headers: dict[str, str], body: Body, sending: _Sending
    ) -> StreamReader:
        """Pass the decode server's answer on, and return what it says."""
        limits = httpx.Timeout(self.limits.decode_s, connect=self.limits.connect_s, pool=None)
        reader = StreamReader()
        request = self.client.build_request(
            "POST", f"{engine.url}{path}", json=body, headers=_of(engine, headers), timeout=limits
        )
        try:
            response = await self.client.send(request, stream=True)
            try:
                if response.status_code != 200:
                    raise _refusal(response.status_code, await response.aread(), engine, "decode")
                kind = response.headers.get("content-type", "application/json")
                if not kind.startswith("text/event-stream"):
                    content = await response.aread()
                    with suppress(ValueError):
                        data = json.loads(content)
                        reader.found = answered(data)
                        if reader.found.kv_transfer_params is not None:
                            content = without_params(data)
                    await sending.whole(200, content, kind)
                    return reader
                await sending.start(200, kind)
                async for data in response.aiter_bytes():
                    await sending.part(reader.feed(data))
                await sending.end(reader.end())
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise _failed(error, engine, "decode") from None
        return reader


class _Sending:
    """An answer on its way: once begun, an error can only be its last event."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def start(self, status: int, kind: str) -> None:
        self.begun = True
        headers = [(b"content-type", kind.encode("latin-1"))]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def part(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.begun = True
        await _answer(self._send, status, content, kind.encode("latin-1"))

    async def refuse(self, refused: RefusedError) -> None:
        if not self.begun:
            await self.whole(refused.status, refused.content())
            return
        one_line = refused.content().replace(b"\n", b" ")
        await self.part(b"data: " + one_line + b"\n\n")
        await self.end()


async def _answer(
    send: Send, status: int, content: bytes, kind: bytes = b"application/json"
) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _read(receive: Receive, most: int) -> Body:
    """Return the request's JSON. Raises RefusedError for what is none, too large or never complete."""
    content = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(0, "disconnected", "the client is gone")
        content += message.get("body", b"")
        if len(content) > most:
            raise RefusedError(413, "bad_request", f"the request has more than {most} bytes")
        more = message.get("more_body", False)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise RefusedError(400, "bad_request", "the request is not JSON") from None
    if not isinstance(body, dict) or not ("prompt" in body or "messages" in body):
        raise RefusedError(400, "bad_request", "the request has neither prompt nor messages")
    return body


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """Return those of the client's headers that the servers should see."""
    found = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
    return {key: found[key] for key in _PASSED if key in found}


def _of(engine: Engine, headers: dict[str, str]) -> dict[str, str]:
    if engine.data_parallel_rank is None:
        return headers
    return {**headers, RANK_HEADER: str(engine.data_parallel_rank)}


def _refusal(status: int, content: bytes, engine: Engine, pool: str) -> RefusedError:
    if 400 <= status < 500:
        return RefusedError(
            status, "client_error", f"refused by {pool} server {engine.url}", content
        )
    what = content[:200].decode("utf-8", "replace")
    return RefusedError(
        502, "upstream_error", f"{pool} server {engine.url} answered {status}: {what}"
    )


def _failed(error: httpx.HTTPError, engine: Engine, pool: str) -> RefusedError:
    what = type(error).__name__
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return RefusedError(504, "timeout", f"{pool} server {engine.url} took too long ({what})")
    message = f"{pool} server {engine.url} does not answer ({what})"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return UnreachableError(engine.url, message)
    return RefusedError(502, "upstream_error", message)


def _now() -> float:
    return asyncio.get_running_loop().time()
