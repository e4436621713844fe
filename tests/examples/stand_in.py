"""Stand-ins for vLLM servers: real HTTP on loopback; they keep what they get and answer as told."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass
class StandIn:
    """A prefill or a decode server. ``delay_s``: before it answers; ``status``: other than 200: an
    error; ``cut``: of a stream, after so many parts the connection ends; ``events``: parts of a stream.
    """

    pool: str
    delay_s: float = 0.0
    status: int = 200
    events: int = 3
    cut: int | None = None
    between_s: float = 0.0
    hands_on: bool = True
    requests: list[dict[str, Any]] = field(default_factory=list)
    gone: int = 0
    """Requests whose client left before the answer was complete."""

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["path"] == "/health":
            await answer(send, 200 if self.status == 200 else self.status, {})
            return
        if scope["path"] == "/v1/models":
            await answer(send, 200, {"data": [{"id": "test"}]})
            return
        content, more = b"", True
        while more:
            message = await receive()
            content += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        body = json.loads(content)
        self.requests.append({"path": scope["path"], "headers": headers, "body": body})
        work = asyncio.create_task(self.serve(body, send))
        gone = asyncio.create_task(receive())
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.gone += 1
            work.cancel()
        gone.cancel()
        await asyncio.wait({work, gone})

    async def serve(self, body: dict[str, Any], send: Send) -> None:
        await asyncio.sleep(self.delay_s)
        if self.status != 200:
            await answer(send, self.status, {"error": {"message": "as told"}})
        elif self.pool == "prefill":
            await answer(send, 200, self.prefilled(body))
        elif body.get("stream"):
            await self.stream(body, send)
        else:
            await answer(send, 200, {**self.completion(body), "choices": [{"text": "answer"}]})

    def prefilled(self, body: dict[str, Any]) -> dict[str, Any]:
        params = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [[1, 2, 3]],
            "remote_engine_id": "engine-of-p",
            "remote_request_id": "request-on-p",
            "remote_host": "127.0.0.1",
            "remote_port": 5600,
            "tp_size": 1,
        }
        return {**self.completion(body), "kv_transfer_params": params if self.hands_on else None}

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        tokens = {"prompt_tokens": len(json.dumps(body.get("messages", body.get("prompt")))) // 4}
        kept = {
            "do_remote_prefill": False,
            "do_remote_decode": True,
            "remote_block_ids": [[7, 8]],
            "remote_engine_id": "engine-of-d",
            "remote_request_id": f"turn-{len(self.requests)}",
            "remote_host": "127.0.0.1",
            "remote_port": 5601,
            "tp_size": 1,
            "remote_num_tokens": 128,
        }
        return {"id": "x", "usage": tokens | {"completion_tokens": 5}, "kv_transfer_params": kept}

    async def stream(self, body: dict[str, Any], send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(self.events):
            if number == self.cut:
                raise ConnectionResetError("as told")
            last = number == self.events - 1
            event = self.completion(body) if last else {"id": "x"}
            event["choices"] = [{"text": f"part {number} ü"}]
            data = f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode()
            for piece in (data[:7], data[7:]):  # as a network may cut it
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(self.between_s)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def answer(send: Send, status: int, data: Any) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(data).encode()})


@contextmanager
def served(*applications: Any, sockets: list[socket.socket] | None = None) -> Iterator[list[str]]:
    """Serve each application on a port of its own, or on ``sockets``; yields their URLs."""
    listening, servers, threads = [], [], []
    for number, application in enumerate(applications):
        if sockets is not None:
            found = sockets[number]
        else:
            found = socket.socket()
            found.bind(("127.0.0.1", 0))
        listening.append(found)
        config = uvicorn.Config(
            application,
            log_level="critical",
            ws="none",
            http="h11",
            loop="asyncio",
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [found]}, daemon=True)
        thread.start()
        servers.append(server)
        threads.append(thread)
    try:
        for server in servers:
            while not server.started:
                threading.Event().wait(0.005)
        yield [f"http://127.0.0.1:{found.getsockname()[1]}" for found in listening]
    finally:
        for server in servers:
            server.should_exit = True
        for thread in threads:
            thread.join(20)
        for found in listening:
            found.close()
