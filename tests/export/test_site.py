"""A site file: hosts are names or addresses, one for each node; ports do not meet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dualpath_model.errors import InputError
from dualpath_model.export import Site, read_site
from dualpath_model.export.site import check_apart, host, port
from tests.export.plans import made
from tests.export.test_all_targets import NASTY


def read(tmp_path: Path, data: Any) -> Site:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return read_site(path)


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ({"prefill": "node {index}"}, "hosts.prefill: 'node {index}' is no host name"),
        ({"prefill": "http://p{index}"}, "has a colon and is no IPv6 address"),
        ({"decode": "d{index}:8000"}, "'d{index}:8000' has a colon"),
        ({"decode": "d{node}"}, "is no host name; .*{index} for a node's number"),
        ({"decode": ["a", "b", "a"]}, "hosts: 'a' names two nodes"),
        ({"prefill": ["a", "b"], "decode": ["c", "b"]}, "'b' names two nodes"),
        ({"prefill": "n{index}", "decode": "n{index}"}, "'n{index}' names two nodes"),
        ({"proxy": "-x"}, "'-x' is no host name"),
    ],
)
def test_bad_hosts(tmp_path: Path, hosts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("{", r"\{").replace("}", r"\}")) as found:
        read(tmp_path, {"hosts": hosts})
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"store": "relative/dir"}, "store: 'relative/dir' does not begin with /"),
        ({"compute_devices": []}, "compute_devices"),
        ({"storage_interfaces": []}, "storage_interfaces"),
    ],
)
def test_bad_places(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (
            {"hosts": {"prefill": "p{index}", "decode": ["p0", "x", "y", "z"]}},
            "'p0' is prefill node 0 and decode node 0",
        ),
        (
            {"hosts": {"prefill": "h{index}", "proxy": "h0"}, "ports": {"proxy": 8000}},
            "ports.server and ports.proxy meet at 8000 on prefill node 0",
        ),
    ],
)
def test_hosts_and_ports_of_the_plan(site: Any, message: str) -> None:
    for target in ("vllm", "sglang"):
        with pytest.raises(InputError, match=message):
            made(target, site=Site.model_validate(site))


def test_hosts_are_nothing_else(tmp_path: Path) -> None:
    """What would escape quotes in a shell, YAML or a URL is no host."""

    def refused(text: str) -> None:
        with pytest.raises(InputError):
            read(tmp_path, {"hosts": {"decode": text + "{index}"}})

    for text in NASTY.elements:  # type: ignore[attr-defined]
        refused(text)


def test_one_name_for_all_nodes(tmp_path: Path) -> None:
    site = read(tmp_path, {"hosts": {"decode": "decode.example.internal"}})
    assert host(site, "decode", 0).value == "decode.example.internal"
    with pytest.raises(InputError, match=r"hosts.decode is .* for every node.*put \{index\}"):
        host(site, "decode", 1)
    for target in ("vllm", "sglang", "lmcache", "mooncake", "prometheus"):
        with pytest.raises(InputError, match="for every node"):
            made(target, site=site)


def test_ipv6_is_bracketed_where_a_port_follows(tmp_path: Path) -> None:
    site = read(tmp_path, {"hosts": {"prefill": "[fd00::{index}]", "decode": "fd01::{index}"}})
    assert host(site, "prefill", 1).value == "fd00::1"
    text = made("prometheus", site=site).files["prometheus.yml"]
    assert "[fd00::1]:8000" in text
    assert "[fd01::3]:9100" in text
    assert "http://[fd01::0]:8000" in made("sglang", site=site).files["router.sh"]


@pytest.mark.parametrize(
    ("target", "ports", "message"),
    [
        (
            "sglang",
            {"server": 8998},
            "ports.server and ports.bootstrap meet at 8998 on prefill node 0",
        ),
        (
            "lmcache",
            {"lmcache_alloc": 7307},
            "ports.lmcache_init and ports.lmcache_alloc meet at 7307",
        ),
        (
            "lmcache",
            {"lmcache_init": 65530},
            "ports.lmcache_init is 65530.*set it to 65528 or lower",
        ),
        ("vllm", {"server": 7780}, "ports.server and ports.p2p meet at 7780"),
    ],
)
def test_ports_that_meet(target: str, ports: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made(target, site=Site.model_validate({"ports": ports}))


def test_last_port() -> None:
    site = Site.model_validate({"ports": {"server": 65535}})
    assert port(site, "server") == 65535
    with pytest.raises(InputError, match="set it to 65534 or lower"):
        check_apart(site, "decode node 0", [("server", [0, 1])])
