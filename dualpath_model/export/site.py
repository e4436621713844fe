"""What no plan can know of a place: host names, ports, folders, devices, name spaces."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from dualpath_model import yaml_lines
from dualpath_model.errors import InputError
from dualpath_model.export.values import Value


def _one_word(text: str) -> str:
    if not text.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise ValueError(f"{text!r} must be text on one line without control characters")
    return text


_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\Z")
MOST_PORT = 65535


def _one_host(text: str) -> str:
    name = text.replace("{index}", "0")
    if ":" in name:
        try:
            ipaddress.IPv6Address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            raise ValueError(
                f"{text!r} has a colon and is no IPv6 address; give the host alone, ports have fields "
                f"of their own"
            ) from None
    elif not _NAME.match(name):
        raise ValueError(
            f"{text!r} is no host name; use letters, digits, '.', '-' and '_', and {{index}} for a "
            f"node's number"
        )
    return text.removeprefix("[").removesuffix("]")


def _one_folder(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(
            f"{text!r} does not begin with /; every node must find the store in the same place, such as "
            f"/mnt/kv-cache"
        )
    return text


Word = Annotated[str, Field(max_length=500), AfterValidator(_one_word)]
Words = Annotated[list[Word], Field(min_length=1)]
Host = Annotated[str, Field(max_length=253), AfterValidator(_one_host)]
Port = Annotated[int, Field(ge=1, le=MOST_PORT, strict=True)]
Dscp = Annotated[int, Field(ge=1, le=63, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Hosts(_Part):
    """Addresses of the nodes. ``{index}`` is the node's number in its pool, from 0."""

    prefill: Host | list[Host] = Field(
        default="prefill-{index}.example.internal",
        description="a pattern, or a list in the plan's order",
    )
    decode: Host | list[Host] = Field(
        default="decode-{index}.example.internal", description="as `prefill`"
    )
    proxy: Host = Field(
        default="proxy.example.internal", description="where the router or proxy in front runs"
    )

    @model_validator(mode="after")
    def _each_its_own(self) -> Self:
        lists = [name for name in (self.prefill, self.decode) if isinstance(name, list)]
        names = [name for each in lists for name in each]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None or self.prefill == self.decode:
            raise ValueError(
                f"'{twice or self.prefill}' names two nodes of the plan; give every node its own host"
            )
        return self


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
    store: Annotated[Word, AfterValidator(_one_folder)] = Field(
        default="/mnt/kv-cache", description="folder of the shared KV-cache storage"
    )
    compute_devices: Words | None = Field(
        default=None, description="RDMA devices of the compute network, in GPU order (mlx5_0, ...)"
    )
    compute_interfaces: Words | None = Field(
        default=None, description="their network interfaces, for RoCE (eth0, ...)"
    )
    storage_interfaces: Words | None = Field(
        default=None, description="network interfaces that carry storage traffic"
    )
    namespace: Word = Field(default="dualpath", description="Kubernetes name space")
    image: Word | None = Field(default=None, description="container image of the engines")
    mooncake_master: Word = Field(
        default="mooncake-master.example.internal:50051",
        description="HOST:PORT of Mooncake's master",
    )
    mooncake_metadata: Word = Field(
        default="P2PHANDSHAKE",
        description="Mooncake's metadata server: a URL, or P2PHANDSHAKE for none",
    )
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
    return of_fields(site, (field,), field_of(site, field) if value is None else value)


def of_fields(site: Site, fields: tuple[str, ...], value: object) -> Value:
    """Return a value that is made of several fields of a site, with its origin."""
    assumed = [field for field in fields if not is_given(site, field)]
    said = "given in the site file"
    if assumed:
        which = "" if len(assumed) == len(fields) else f"{' and '.join(assumed)} "
        said = f"{which}assumed; set it in a --site file"
    return Value(value, f"{' and '.join(fields)}, {said}", origin="site", site=fields)


def field_of(site: Site, field: str) -> object:
    """Return what a dotted field of a site holds."""
    found: object = site
    for part in field.split("."):
        found = getattr(found, part)
    return found


def is_given(site: Site, field: str) -> bool:
    """Tell whether the site file states a dotted field."""
    found: object = site
    for part in field.split("."):
        if not isinstance(found, BaseModel) or part not in found.model_fields_set:
            return False
        found = getattr(found, part)
    return True


def host(site: Site, pool: str, index: int) -> Value:
    """Return the address of a node. Raises InputError if the site names too few."""
    names = getattr(site.hosts, pool)
    if isinstance(names, str) and "{index}" not in names and index > 0:
        raise InputError(
            f"site: hosts.{pool} is '{names}' for every node, but the plan has more than one; put "
            f"{{index}} into it for the node's number, or list a name for each node"
        )
    if isinstance(names, str):
        return of_site(site, f"hosts.{pool}", names.replace("{index}", str(index)))
    if index >= len(names):
        raise InputError(
            f"site: hosts.{pool} names {len(names)} nodes, but the plan has more (node {index}); name "
            f"all of them, or give one pattern with {{index}}"
        )
    return of_site(site, f"hosts.{pool}", names[index])


def check_hosts(site: Site, prefill_nodes: int, decode_nodes: int) -> None:
    """Raise InputError where two nodes of a plan would have one host, as far as the site names them."""
    seen: dict[str, str] = {}
    for pool, count in (("prefill", prefill_nodes), ("decode", decode_nodes)):
        names = getattr(site.hosts, pool)
        if isinstance(names, str):
            names = [names.replace("{index}", str(index)) for index in range(count)]
            names = (
                names[:1] if len(set(names)) == 1 else names
            )  # which `host` refuses with a remedy
        for index, name in enumerate(names[:count]):
            node = f"{pool} node {index}"
            if name in seen:
                raise InputError(
                    f"site: hosts: '{name}' is {seen[name]} and {node}; give every node its own host"
                )
            seen[name] = node


def in_front(site: Site, pool: str, index: int) -> bool:
    """Tell whether the router or proxy in front runs on a node."""
    return bool(host(site, pool, index).value == site.hosts.proxy)


def bracketed(name: str) -> str:
    """Return a host as URLs take it: IPv6 addresses in brackets."""
    return f"[{name}]" if ":" in name and not name.startswith("[") else name


def port(site: Site, field: str, offset: int = 0) -> int:
    """Return a port of the site plus an offset. Raises InputError beyond the last there is."""
    base: int = getattr(site.ports, field)
    if base + offset > MOST_PORT:
        raise InputError(
            f"site: ports.{field} is {base}, but the plan's engines need ports up to {base + offset}; "
            f"set it to {MOST_PORT - offset} or lower"
        )
    return base + offset


def check_apart(site: Site, node: str, wanted: Iterable[tuple[str, Iterable[int]]]) -> None:
    """Check what listens on one node: fields of ``ports`` with the offsets that are taken from each.

    Raises InputError for a port beyond the last there is, and where two would be the same.
    """
    needed = [(field, offset) for field, offsets in wanted for offset in offsets]
    highest = dict(sorted(needed, key=lambda pair: pair[1]))
    for field, offset in highest.items():  # first, so that the remedy is for all of them
        port(site, field, offset)
    taken: dict[int, str] = {}
    for field, offset in needed:
        number = port(site, field, offset)
        if number in taken:
            raise InputError(
                f"site: ports.{taken[number]} and ports.{field} meet at {number} on {node}, where both "
                f"may take more than one port from their first on; set them further apart"
            )
        taken[number] = field
