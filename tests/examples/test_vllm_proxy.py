"""The proxy between stand-in servers, over real HTTP: what it sends, whom it asks, how it fails."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest

from dualpath_model.export import export, target_named
from dualpath_model.routing import read_routing, reads_through_decode
from dualpath_model.scheduler.events import Limits as NodeLimits
from dualpath_model.scheduler.events import NodeJoined, Settings
from examples.vllm_proxy.__main__ import build
from examples.vllm_proxy.app import Limits, Proxy
from tests.conftest import ROOT
from tests.examples.stand_in import StandIn, served
from tests.export.environment import check
from tests.export.plans import plan_file

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


@dataclass
class Running:
    """A proxy in front of two prefill and two decode servers."""

    url: str
    proxy: Proxy
    prefill: list[StandIn]
    decode: list[StandIn]

    def post(self, path: str = TEXT, session: str | None = None, **body: Any) -> httpx.Response:
        headers = {"x-session-id": session} if session else {}
        asked = {"model": "test", "max_tokens": 9, **body}
        if "messages" not in asked:
            asked.setdefault("prompt", "a prompt of some words")
        return httpx.post(f"{self.url}{path}", json=asked, headers=headers, timeout=30)

    def sent(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return what the prefill and the decode servers were sent."""
        return (
            [r for server in self.prefill for r in server.requests],
            [r for server in self.decode for r in server.requests],
        )

    def outcomes(self) -> Counter[str]:
        return self.proxy.metrics.outcomes


@contextmanager
def running(
    tmp_path: Path,
    mode: str = "plan",
    *,
    limits: Limits | None = None,
    alpha: int = 10**9,
    hbm: int = 10**9,
    **change: Any,
) -> Iterator[Running]:
    prefill, decode = ([StandIn(pool) for _ in range(2)] for pool in ("prefill", "decode"))
    with served(*prefill, *decode) as urls:
        path = files(tmp_path, urls, alpha=alpha, hbm=hbm, **change)
        proxy = build(path, mode, limits=limits)
        with served(proxy) as (url,):
            yield Running(url, proxy, prefill, decode)
    assert proxy.metrics.running == 0


def files(tmp_path: Path, urls: list[str], *, alpha: int, hbm: int, **change: Any) -> Path:
    """Write routing.json and scheduler.json for these servers, each with two engines."""
    pools: dict[str, list[dict[str, Any]]] = {"prefill": [], "decode": []}
    nodes = []
    for number, url in enumerate(urls):
        pool = "prefill" if number < 2 else "decode"
        node = f"{pool[0]}{number % 2}"
        for rank in range(2):
            entry: dict[str, Any] = {
                "engine": f"{node}/{rank}",
                "node": node,
                "url": url,
                "data_parallel_rank": rank,
                "read_weight": 0.25,
                "other_weight": 0.25,
            }
            if pool == "decode":
                entry["p2p"] = {"host": f"host-of-{node}", "port": 7777 + rank}
            pools[pool].append(entry)
        limit = NodeLimits(alpha_tokens=alpha, beta_tokens=10**9, hbm_tokens=hbm)
        nodes.append(NodeJoined(node, pool, pool, (f"{node}/0", f"{node}/1"), limit))  # type: ignore[arg-type]
    common = {"version": 1, "scenario": "test", "split": 0.6, "alpha_s": 3.0, "beta_s": 5.0}
    routing = {
        **common,
        "format": "dualpath-routing",
        "decode_reads": "p2p",
        "scheduler": "scheduler.json",
        **pools,
        **change,
    }
    scheduler = {
        **common,
        "format": "dualpath-scheduler",
        "quota_s": 0.3,
        "settings": asdict(Settings(block_tokens=4)),
        "nodes": [asdict(node) for node in nodes],
    }
    (tmp_path / "scheduler.json").write_text(json.dumps(scheduler))
    path = tmp_path / "routing.json"
    path.write_text(json.dumps(routing))
    return path


def tagged(request: dict[str, Any]) -> bool:
    return "remote_kv_source" in request["body"]["kv_transfer_params"]


# ---- what is sent ----------------------------------------------------------------------------------


def test_prefill_then_decode(tmp_path: Path) -> None:
    with running(tmp_path) as here:
        session = next(n for n in map(str, range(99)) if reads_through_decode(n, 0.6))
        response = here.post(
            CHAT,
            session,
            messages=[{"role": "user", "content": "hello"}],
            max_completion_tokens=50,
            min_tokens=3,
            stream_options={"include_usage": True},
            kv_transfer_params={"remote_host": "a client's idea"},
        )
        assert response.status_code == 200
        assert response.json()["choices"] == [{"text": "answer"}]
        assert "kv_transfer_params" not in response.json()
        ((prefill,), (decode,)) = here.sent()
    body = prefill["body"]
    assert (body["max_tokens"], body["max_completion_tokens"], body["stream"]) == (1, 1, False)
    assert not {"min_tokens", "stream_options"} & body.keys()
    params = body["kv_transfer_params"]
    assert params["do_remote_decode"] is True
    # the hits come from the very engine that decodes
    rank = int(decode["headers"]["x-data-parallel-rank"])
    node = "d0" if here.decode[0].requests else "d1"
    source = params["remote_kv_source"]
    assert (source["remote_host"], source["remote_port"]) == (f"host-of-{node}", 7777 + rank)
    assert source["kv_request_id"]
    assert params["kv_load_tiers"] == [{"medium": "CPU"}]
    asked = decode["body"]
    assert (asked["max_completion_tokens"], asked["min_tokens"]) == (50, 3)
    assert asked["kv_transfer_params"]["remote_engine_id"] == "engine-of-p"
    assert asked["kv_transfer_params"]["kv_load_tiers"] == []
    assert prefill["headers"]["x-request-id"] == decode["headers"]["x-request-id"]
    assert decode["headers"]["x-session-id"] == session


def test_other_sessions_carry_no_source(tmp_path: Path) -> None:
    with running(tmp_path) as here:
        session = next(n for n in map(str, range(99)) if not reads_through_decode(n, 0.6))
        assert here.post(TEXT, session).status_code == 200
        ((prefill,), _) = here.sent()
    assert not {"remote_kv_source", "kv_load_tiers"} & prefill["body"]["kv_transfer_params"].keys()


@pytest.mark.parametrize(
    "body",
    [{"session_id": "s"}, {"vllm_xargs": {"session_id": "s"}}],
)
def test_the_session_may_be_in_the_body(tmp_path: Path, body: dict[str, Any]) -> None:
    with running(tmp_path) as here:
        for _ in range(8):
            assert here.post(TEXT, **body).status_code == 200
        prefill, decode = here.sent()
    assert len({tagged(request) for request in prefill}) == 1
    assert len({request["headers"]["x-data-parallel-rank"] for request in decode}) == 1


def test_a_stream_passes_byte_by_byte(tmp_path: Path) -> None:
    with running(tmp_path) as here:
        response = here.post(TEXT, "s", stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line for line in response.text.splitlines() if line.startswith("data: ")]
        parts = [json.loads(event[6:])["choices"][0]["text"] for event in events[:-1]]
        known = here.proxy.sessions.get("s")
    assert parts == [f"part {number} ü" for number in range(3)]
    assert "kv_transfer_params" not in response.text  # addresses inside are nobody's
    assert events[-1] == "data: [DONE]"
    assert known is not None
    assert known.context_tokens == len(json.dumps("a prompt of some words")) // 4 + 5


def test_a_turn_pulls_what_the_turn_before_left(tmp_path: Path) -> None:
    with running(tmp_path, decode_reads="pull", split=1.0, keep_s=100.0) as here:
        for stream in (False, True, False):
            assert here.post(TEXT, "s", stream=stream).status_code == 200
        prefill, _ = here.sent()
    by_turn = [request["body"]["kv_transfer_params"] for request in prefill]
    turns = sorted(by_turn, key=lambda params: params.get("remote_request_id") or "")
    assert turns[0]["remote_block_ids"] is None
    assert [turn["remote_request_id"] for turn in turns[1:]] == ["turn-1", "turn-2"]
    for turn in turns[1:]:
        assert turn["do_remote_decode"] is True
        assert turn["do_remote_prefill"] is False
        assert turn["kv_load_tiers"] == []  # nothing is promoted that is pulled
        assert "remote_kv_source" not in turn


def test_what_is_too_old_is_not_pulled(tmp_path: Path) -> None:
    with running(tmp_path, decode_reads="pull", split=1.0, keep_s=0.05) as here:
        here.post(TEXT, "s")
        time.sleep(0.2)
        here.post(TEXT, "s")
        prefill, _ = here.sent()
    assert all(r["body"]["kv_transfer_params"]["remote_block_ids"] is None for r in prefill)


# ---- shares ----------------------------------------------------------------------------------------


def many(here: Running, sessions: list[str], turns: int = 1, words: int = 1) -> list[int]:
    """Send each session's turns one after the other, many sessions at once; returns the statuses."""

    async def all_of_them() -> list[int]:
        limit = asyncio.Semaphore(24)
        async with httpx.AsyncClient(timeout=60) as client:

            async def one(session: str) -> list[int]:
                found = []
                async with limit:
                    for turn in range(turns):
                        body = {"model": "m", "prompt": "word " * (turn + words), "max_tokens": 5}
                        headers = {"x-session-id": session}
                        response = await client.post(here.url + TEXT, json=body, headers=headers)
                        found.append(response.status_code)
                return found

            return list(chain(*await asyncio.gather(*map(one, sessions))))

    return asyncio.run(all_of_them())


@pytest.mark.slow
def test_the_share_of_a_thousand_sessions_is_the_split(tmp_path: Path) -> None:
    sessions = [f"agent-{number}" for number in range(1000)]
    with running(tmp_path) as here:
        assert set(many(here, sessions)) == {200}
        again = sessions[:60]
        assert set(many(here, again, turns=2)) == {200}
        prefill, decode = here.sent()
        metrics = httpx.get(f"{here.url}/metrics").text
    paths: dict[str, set[bool]] = {}
    for request in prefill:
        paths.setdefault(request["headers"]["x-session-id"], set()).add(tagged(request))
    assert len(paths) == 1000
    assert all(len(path) == 1 for path in paths.values())  # sticky
    share = sum(path == {True} for path in paths.values()) / 1000
    deviation = math.sqrt(0.6 * 0.4 / 1000)
    assert abs(share - 0.6) < 4 * deviation
    said = re.search(r'dualpath_proxy_split\{by="sessions"\} (\S+)', metrics)
    assert said is not None
    assert float(said[1]) == pytest.approx(share)
    places: dict[str, set[tuple[int, str]]] = {}
    for number, server in enumerate(here.decode):
        for request in server.requests:
            place = (number, request["headers"]["x-data-parallel-rank"])
            places.setdefault(request["headers"]["x-session-id"], set()).add(place)
    assert all(len(place) == 1 for place in places.values())
    engines = Counter(next(iter(place)) for place in places.values())
    assert len(engines) == 4
    spread = math.sqrt(0.25 * 0.75 * 1000)
    assert all(abs(count - 250) < 4.5 * spread for count in engines.values())
    assert len(decode) == 1120


def test_live_queues_send_hits_through_decode_when_prefill_is_busy(tmp_path: Path) -> None:
    """A prefill node with a slow read keeps its queue long, so that turns with hits go round it."""
    with running(tmp_path, "live", alpha=10) as here:
        for name in "abcdefgh":
            here.post(TEXT, name, prompt="word " * 400)  # the first turn has no hits
        assert here.proxy.metrics.hit_tokens.total() == 0
        quick = [here.post(TEXT, name, prompt="word " * 500) for name in "abcdefgh"]
        assert {response.status_code for response in quick} == {200}
        before = Counter(here.proxy.metrics.requests)
        assert before["prefill"] > 8  # queues are empty: both sides are taken by turns
        for server in here.prefill:
            server.delay_s = 1.0
        assert set(many(here, list("abcdefgh"), words=600)) == {200}
        busy = Counter(here.proxy.metrics.requests) - before
        assert busy["decode"] >= 3
        assert not here.proxy.chooser.routes.scheduler.requests  # type: ignore[attr-defined]


def test_long_reads_reported_for_prefill_nodes_move_all_hits_to_decode(tmp_path: Path) -> None:
    with running(tmp_path, "live") as here:
        here.post(TEXT, "s", prompt="word " * 400)
        routes = here.proxy.chooser.routes  # type: ignore[attr-defined]
        for _ in range(4):
            routes.report({"p0": 10**6, "p1": 10**6})
            assert here.post(TEXT, "s", prompt="word " * 500).status_code == 200
        prefill, _ = here.sent()
    assert [tagged(request) for request in prefill].count(True) == 4


@pytest.mark.slow
def test_live_requests_wait_for_room(tmp_path: Path) -> None:
    limits = Limits(queue_s=0.5)
    with running(tmp_path, "live", limits=limits, hbm=100) as here:
        for server in here.decode:
            server.delay_s = 6.0
        ids = list(range(90))  # 90 of 100 tokens: an engine holds one
        threads = [
            threading.Thread(target=here.post, kwargs={"session": str(n), "prompt": ids})
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 5
        while len(here.sent()[1]) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        late = here.post(TEXT, "late", prompt=ids)
        assert late.status_code == 503
        assert "no engine had room" in late.json()["error"]["message"]
        for thread in threads:
            thread.join()
        assert here.post(TEXT, "later", prompt=ids).status_code == 200
        assert here.post(TEXT, "large", prompt=list(range(200))).status_code == 400
        assert not here.proxy.chooser.routes.scheduler.requests  # type: ignore[attr-defined]


# ---- what goes wrong -------------------------------------------------------------------------------


def test_errors_of_the_servers(tmp_path: Path) -> None:
    with running(tmp_path) as here:
        for server in here.prefill:
            server.status = 400
        refused = here.post()
        assert (refused.status_code, refused.json()) == (400, {"error": {"message": "as told"}})
        for server in here.prefill:
            server.status = 500
        assert here.post().status_code == 502
        for server in here.prefill:
            server.status, server.hands_on = 200, False
        silent = here.post()
        assert silent.status_code == 502
        assert "returned no kv_transfer_params" in silent.json()["error"]["message"]
        for server in here.prefill:
            server.hands_on = True
        for server in here.decode:
            server.status = 500
        assert here.post(stream=True).status_code == 502
        assert here.outcomes() == {"client_error": 1, "upstream_error": 3}
        assert httpx.get(f"{here.url}/health").json()["status"] == "unavailable"


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with served(StandIn("prefill")) as (gone,):
        pass
    prefill, decode = StandIn("prefill"), StandIn("decode")
    with served(prefill, prefill, decode, decode) as urls:
        path = files(tmp_path, [gone, gone, *urls[2:]], alpha=10**9, hbm=10**9)
        proxy = build(path)
        with served(proxy) as (url,):
            response = httpx.post(url + TEXT, json={"prompt": "x"}, timeout=30)
            assert response.status_code == 503
            assert "no prefill engine can be reached" in response.json()["error"]["message"]
            health = httpx.get(f"{url}/health").json()
    assert health["prefill"] == {gone: False}
    assert set(health["decode"].values()) == {True}


@pytest.mark.parametrize("mode", ["plan", "live"])
def test_a_server_that_is_gone_is_gone_round_until_it_is_back(tmp_path: Path, mode: str) -> None:
    servers = [StandIn(pool) for pool in ("prefill", "prefill", "decode", "decode")]
    with served(*servers[:3]) as urls:
        away = socket.socket()
        away.bind(("127.0.0.1", 0))  # bound, but nobody listens
        gone = f"http://127.0.0.1:{away.getsockname()[1]}"
        # refused at once; a busy machine may take seconds for those that are there
        patient = Limits(connect_s=60.0)
        proxy = build(files(tmp_path, [*urls, gone], alpha=10**9, hbm=10**9), mode, limits=patient)
        with closing(away), served(proxy) as (url,):

            def turns() -> set[int]:
                here = Running(url, proxy, servers[:2], servers[2:])
                return set(many(here, [str(number) for number in range(16)]))

            assert turns() == {200}
            assert list(proxy.lost) == [gone]
            assert len(servers[2].requests) == 16
            with served(servers[3], sockets=[away]):
                until = time.monotonic() + 20
                while proxy.lost and time.monotonic() < until:
                    time.sleep(0.05)
                assert turns() == {200}
                assert servers[3].requests
        assert not proxy.lost


def test_servers_that_take_too_long(tmp_path: Path) -> None:
    limits = Limits(prefill_s=0.2, decode_s=0.2)
    with running(tmp_path, limits=limits) as here:
        for server in here.prefill:
            server.delay_s = 5.0
        slow = here.post()
        assert slow.status_code == 504
        assert "took too long" in slow.json()["error"]["message"]
        for server in here.prefill:
            server.delay_s = 0.0
        for server in here.decode:
            server.between_s = 5.0
        stalled = here.post(stream=True)  # the stream had begun: its last event is the error
        assert stalled.status_code == 200
        last = json.loads(stalled.text.strip().splitlines()[-1].removeprefix("data: "))
        assert last["error"]["code"] == 504
        assert here.outcomes() == {"timeout": 2}


def test_a_stream_that_breaks(tmp_path: Path) -> None:
    with running(tmp_path) as here:
        for server in here.decode:
            server.cut = 1
        response = here.post(stream=True)
        assert "part 0" in response.text
        last = json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))
        assert last["error"]["code"] == 502
        assert here.outcomes() == {"upstream_error": 1}


@pytest.mark.parametrize("where", ["prefill", "decode"])
def test_a_client_that_leaves_ends_the_request_at_the_server(tmp_path: Path, where: str) -> None:
    with running(tmp_path, "live") as here:
        for server in here.prefill if where == "prefill" else here.decode:
            server.delay_s = 30.0
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(here.url + TEXT, json={"prompt": "x"}, timeout=0.5)
        servers = here.prefill if where == "prefill" else here.decode
        requests = here.proxy.chooser.routes.scheduler.requests  # type: ignore[attr-defined]
        until = time.monotonic() + 60
        while time.monotonic() < until and (requests or not sum(server.gone for server in servers)):
            time.sleep(0.02)
        assert sum(server.gone for server in servers) == 1
        assert here.outcomes() == {"disconnected": 1}
        assert not requests


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", TEXT, b"not JSON", 400),
        ("POST", TEXT, b"[1]", 400),
        ("POST", TEXT, b'{"model": "m"}', 400),
        ("POST", TEXT, b'{"prompt": "' + b"x" * 3000 + b'"}', 413),
        ("GET", TEXT, b"", 405),
        ("POST", "/v1/embeddings", b"{}", 404),
        ("GET", "/v1/models", b"", 200),
    ],
)
def test_what_clients_get_wrong(
    tmp_path: Path, method: str, path: str, content: bytes, status: int
) -> None:
    with running(tmp_path, limits=Limits(body_bytes=2000)) as here:
        response = httpx.request(method, here.url + path, content=content)
        assert response.status_code == status
        if status >= 400:
            assert response.json()["error"]["message"]
        assert not any(server.requests for server in (*here.prefill, *here.decode))


# ---- with the export's own files, and vLLM's own classes ---------------------------------------------


def test_it_starts_from_an_export(tmp_path: Path) -> None:
    made = export(target_named("vllm"), plan_file("qwen-32b-1p2d"))
    for name in ("routing.json", "scheduler.json"):
        (tmp_path / name).write_text(made.files[name])
    for mode in ("plan", "live"):
        proxy = build(tmp_path / "routing.json", mode, split=0.25)
        assert proxy.split == 0.25
        assert len(proxy.engines) == 24
    assert read_routing(tmp_path / "routing.json").split == pytest.approx(2 / 3)


def test_the_command(tmp_path: Path) -> None:
    made = export(target_named("vllm"), plan_file("qwen-32b-1p2d"))
    for name in ("routing.json", "scheduler.json"):
        (tmp_path / name).write_text(made.files[name])
    command = [sys.executable, "-m", "examples.vllm_proxy", str(tmp_path / "routing.json")]
    wrong = [*command, "--split", "2"]
    bad = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (bad.returncode, "it must be from 0 to 1" in bad.stderr) == (2, True)
    command[-1] += ".no"
    bad = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (bad.returncode, "cannot be read" in bad.stderr) == (2, True)
    command[-1] = str(tmp_path / "routing.json")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with served(StandIn("decode")) as (url,):
        free = url.rpartition(":")[2]
    process = subprocess.Popen(
        [*command, "--mode", "live", "--port", free],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                metrics = httpx.get(f"http://127.0.0.1:{free}/metrics").text
                break
            except httpx.ConnectError:
                assert time.monotonic() < until
                time.sleep(0.1)
        assert "dualpath_proxy_plan_split 0.666" in metrics
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.exports
@pytest.mark.parametrize("decode_reads", ["p2p", "pull"])
def test_vllm_reads_the_requests_as_they_are_meant(tmp_path: Path, decode_reads: str) -> None:
    """Every request that the servers were sent, through vLLM's own request classes and connectors."""
    with running(tmp_path, decode_reads=decode_reads) as here:
        for session in map(str, range(12)):
            for stream in (False, True):
                here.post(TEXT, session, stream=stream, seed=1, stop=["x"])
                here.post(
                    CHAT,
                    session,
                    messages=[{"role": "user", "content": "hello"}],
                    stream=stream,
                    stream_options={"include_usage": True} if stream else None,
                    logprobs=True,
                    top_logprobs=2,
                )
        sent = here.sent()
    read = []
    for number, requests in enumerate(sent):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps(requests))
        found = check("vllm", file, checker="vllm_requests")
        assert found.accepted, found.output
        read.append(found.values)
    prefill, decode = read
    assert len(prefill) == len(decode) == 48
    assert all(r["prefill"] and not r["decode"] for r in prefill)
    assert all(r["max_tokens"] == 1 and not r["stream"] for r in prefill)
    assert all(r["decode"] and not r["prefill"] and r["tiers"] == [] for r in decode)
    assert {r["rank"] for r in prefill} == {r["rank"] for r in decode} == {"0", "1"}
    if decode_reads == "p2p":
        peers = [r for r in prefill if r["peer"]]
        assert peers
        assert len(peers) < len(prefill)
        assert all(re.fullmatch(r"host-of-d[01]:777[78]", r["peer"]) for r in peers)
        assert all(r["tiers"] == ["p2p"] for r in peers)
        assert len({r["kv_request_id"] for r in peers}) == len(peers)
        assert all(r["tiers"] is None for r in prefill if not r["peer"])
    else:
        pulled = [r for r in prefill if r["pulls"]]
        assert pulled
        assert all(r["tiers"] == [] for r in pulled)
        assert not any(r["peer"] for r in prefill)


@pytest.mark.exports
@pytest.mark.parametrize(
    "params",
    [
        None,
        {"do_remote_decode": True, "remote_kv_sources": {}},
        {"do_remote_decode": True, "remote_kv_source": {"host": "h", "port": 1}},
        {"do_remote_decode": True, "remote_kv_source": {"remote_host": "h", "remote_port": 1}},
    ],
)
def test_vllm_would_not_read_what_is_misspelt(tmp_path: Path, params: Any) -> None:
    body = {"model": "m", "prompt": "x", "max_tokens": 1, "kv_transfer_params": params}
    file = tmp_path / "requests.json"
    file.write_text(json.dumps([{"path": TEXT, "headers": {}, "body": body}]))
    assert not check("vllm", file, checker="vllm_requests").accepted
