"""Kubernetes' own schemas on our files: ``FILE VERSION``; ``graph FILE VERSION``: Dynamo's graph."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

KEYS = yaml.safe_load((Path(__file__).parent / "dynamo_graph.yaml").read_text())
NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
COMPONENT = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?\Z")


class RefusedError(Exception):
    """Our own complaint, where the resource has no schema here."""


def resources(file: Path, version: str) -> Any:
    """Validate every document, unknown keys refused."""
    documents = [d for d in yaml.safe_load_all(file.read_text()) if d is not None]
    for document in documents:
        # a kustomization is kustomize's file, no resource of the API
        if document.get("kind") != "Kustomization":
            kubernetes_validate.validate(document, version, strict=True)
            if not NAME.match(document["metadata"]["name"]):
                raise RefusedError(f"name {document['metadata']['name']} is no DNS-1123 label")
    return documents


def graph(file: Path, version: str) -> Any:
    """Check a graph's keys against the Go types, and each podTemplate as a Pod."""
    (document,) = yaml.safe_load_all(file.read_text())
    if document["apiVersion"] != "nvidia.com/v1beta1":
        raise RefusedError(f"apiVersion {document['apiVersion']}")
    _only(document, ["apiVersion", "kind", "metadata", "spec"], "the document")
    spec = document["spec"]
    _only(spec, KEYS["spec"], "spec")
    if spec.get("backendFramework", "vllm") not in KEYS["frameworks"]:
        raise RefusedError(f"backendFramework {spec['backendFramework']}")
    names = [part["name"].lower() for part in spec["components"]]
    if len(set(names)) < len(names) or len(names) > 25:
        raise RefusedError(f"names of components {names}")
    for part in spec["components"]:
        _component(part, version)
    return document


def _component(part: dict[str, Any], version: str) -> None:
    _only(part, KEYS["component"], part["name"])
    if not COMPONENT.match(part["name"]) or len(part["name"]) > 63:
        raise RefusedError(f"name of component {part['name']}")
    if part["type"] not in KEYS["types"]:
        raise RefusedError(f"type {part['type']}")
    replicas = part.get("replicas", 1)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or replicas < 0:
        raise RefusedError(f"replicas {replicas}")
    _only(part.get("multinode", {}), KEYS["multinode"], f"{part['name']}.multinode")
    template = part["podTemplate"]
    main = [c for c in template["spec"]["containers"] if c["name"] == "main"]
    if len(main) != 1 or not main[0].get("image"):
        raise RefusedError(f"{part['name']} has no container main with an image")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": part["name"].lower(), **template.get("metadata", {})},
        **{key: value for key, value in template.items() if key != "metadata"},
    }
    kubernetes_validate.validate(pod, version, strict=True)


def _only(mapping: dict[str, Any], allowed: list[str], where: str) -> None:
    unknown = sorted(set(mapping) - set(allowed))
    if unknown:
        raise RefusedError(f"unknown keys of {where}: {unknown}")


def main() -> None:
    """Exit with 0 and what was read, or with 3 and why it was refused."""
    *what, file, version = sys.argv[1:]
    try:
        found = (graph if what else resources)(Path(file), version)
    except (
        kubernetes_validate.ValidationError,
        kubernetes_validate.SchemaNotFoundError,
        RefusedError,
    ) as error:
        print(f"refused: {getattr(error, 'message', error)}")
        sys.exit(3)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
