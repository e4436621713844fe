"""What no plan can know of a place: host names, ports, folders, devices, name spaces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from dualpath_model import yaml_lines
from dualpath_model.errors import InputError
from dualpath_model.export.values import Value


def _one_word(text: str) -> str:
    if not text.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise ValueError(f"{text!r} must be text on one line without control characters")
    return text


Word = Annotated[str, Field(max_length=500), AfterValidator(_one_word)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]
Dscp = Annotated[int, Field(ge=1, le=63, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hosts(_Part):
    """Addresses of the nodes. ``{index}`` is the node's number in its pool, from 0."""

    prefill: Word | list[Word] = "prefill-{index}.example.internal"
    decode: Word | list[Word] = "decode-{index}.example.internal"
    proxy: Word = "proxy.example.internal"


class Ports(_Part):
    """Where things listen, the same on every node."""

    server: Port = Field(
        default=8000,
        description="the engines' HTTP API; one more for each further server of a node",
    )
    p2p: Port = Field(default=7777, description="vLLM's peer-to-peer tier")
    bootstrap: Port = Field(default=8998, description="SGLang's disaggregation bootstrap")
    proxy: Port = Field(default=8080, description="the router or proxy in front")
    side_channel: Port = Field(default=5600, description="NIXL's side channel")
    lmcache_init: Port = Field(
        default=7300, description="LMCache's receivers: connections; one more for each GPU"
    )
    lmcache_alloc: Port = Field(
        default=7400, description="LMCache's receivers: room in the buffer; one more for each GPU"
    )
    lmcache_proxy: Port = Field(
        default=7500, description="where the proxy hears from LMCache's senders"
    )
    rendezvous: Port = Field(
        default=5000, description="where the nodes of one SGLang server find each other"
    )
    data_parallel: Port = Field(
        default=13345, description="where the ranks of one vLLM expert-parallel group meet"
    )
    node_exporter: Port = Field(default=9100, description="Prometheus node_exporter")


class Site(_Part):
    """A site file (YAML); every field has a default that the export's README lists."""

    hosts: Hosts = Hosts()
    ports: Ports = Ports()
    model: Word | None = Field(default=None, description="path or name of the weights")
    store: Word = Field(
        default="/mnt/kv-cache", description="folder of the shared KV-cache storage"
    )
    compute_devices: list[Word] | None = Field(
        default=None, description="RDMA devices of the compute network, in GPU order (mlx5_0, ...)"
    )
    compute_interfaces: list[Word] | None = Field(
        default=None, description="their network interfaces, for RoCE (eth0, ...)"
    )
    storage_interfaces: list[Word] | None = Field(
        default=None, description="network interfaces that carry storage traffic"
    )
    namespace: Word = Field(default="dualpath", description="Kubernetes name space")
    image: Word | None = Field(default=None, description="container image of the engines")
    mooncake_master: Word = "mooncake-master.example.internal:50051"
    mooncake_metadata: Word = "P2PHANDSHAKE"
    policy: Word = Field(default="dualpath", description="of the reference scheduler")
    kv_dscp: Dscp = Field(default=26, description="RoCE: DSCP of KV-cache")
    collective_dscp: Dscp = Field(default=10, description="RoCE: DSCP of collectives")


def read_site(path: Path | None) -> Site:
    """Read a site file; None: all defaults. Raises InputError with file, line, field and remedy."""
    if path is None:
        return Site()
    document = yaml_lines.read(path)
    try:
        return Site.model_validate(document.data)
    except ValidationError as error:
        raise yaml_lines.explain(error, document, Site) from None


def of_site(site: Site, field: str, value: object = None) -> Value:
    """Return the value of a site's field (dotted), or ``value`` made from it, with its origin."""
    found: object = site
    given = True
    for part in field.split("."):
        given = given and isinstance(found, BaseModel) and part in found.model_fields_set
        found = getattr(found, part)
    said = "given in the site file" if given else "assumed; set it in a --site file"
    return Value(found if value is None else value, f"{field}, {said}", origin="site")


def host(site: Site, pool: str, index: int) -> Value:
    """Return the address of a node. Raises InputError if the site lists too few."""
    names = getattr(site.hosts, pool)
    if isinstance(names, str):
        return of_site(site, f"hosts.{pool}", names.replace("{index}", str(index)))
    if index >= len(names):
        raise InputError(
            f"site: hosts.{pool} names {len(names)} nodes, but the plan has more (node {index}); name "
            f"all of them, or give one pattern with {{index}}"
        )
    return of_site(site, f"hosts.{pool}", names[index])


def bracketed(name: str) -> str:
    """Return a host as URLs take it: IPv6 addresses in brackets."""
    return f"[{name}]" if ":" in name and not name.startswith("[") else name
