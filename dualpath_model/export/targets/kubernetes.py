"""Target ``kubernetes``: the files of another target as ConfigMaps."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dualpath_model.errors import InputError
from dualpath_model.export.documents import File, yaml_documents, yaml_file
from dualpath_model.export.quoting import one_line
from dualpath_model.export.registry import target_named
from dualpath_model.export.site import of_site
from dualpath_model.export.target import Asked, Bundle, Target
from dualpath_model.export.targets._names import checked_namespace, key, label
from dualpath_model.export.values import Document, Value, derived, fixed

MOST_BYTES = 2**20
"""Of all keys and values of a ConfigMap together (Kubernetes' core validation)."""
_VERSION = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])\Z")


def build(asked: Asked) -> Bundle:
    """Return the wrapped target's files, as they are and in ConfigMaps."""
    inside = _wrapped(asked)
    version = inside.checked_version(asked.wraps_version)
    told = Asked(asked.plan, asked.site, version)
    inner = inside.build(told)
    keys = _keys(inner.files)
    maps = _split(inner.files, keys)
    document = [
        _config_map(asked, version, files, keys, _name(asked, number, len(maps)))
        for number, files in enumerate(maps)
    ]
    head = [f"Files of target {asked.wraps} {version}, from plan {asked.plan.scenario}"]
    about = f"{len(maps)} ConfigMap{'s' * (len(maps) > 1)} with the files of target {asked.wraps}"
    made = yaml_documents("configmap.yaml", about, document, head=head)
    kept = tuple(
        File(f"files/{file.name}", file.about, file.text, file.values, file.executable)
        for file in inner.files
    )
    notes = []
    renamed = [file.name for file in inner.files if keys[file.name] != file.name]
    if renamed:
        notes.append(
            f"{len(renamed)} files have keys without the '/' of their paths, as a key has "
            f"letters, digits, '-', '_' and '.' only ({renamed[0]}: {keys[renamed[0]]}); mount "
            "them with `items` to give them their paths back"
        )
    if any(file.executable for file in inner.files):
        notes.append(
            "scripts (*.sh): mount with `defaultMode: 0555`, or run as `bash FILE`: a ConfigMap "
            "keeps no permissions"
        )
    if note := inside.not_looked_at(version):
        notes.insert(0, note)
    files = (made, _kustomization(), *kept)
    return Bundle(files, inner.dropped, (*notes, *inner.notes), wrapped=(inside, told))


def _wrapped(asked: Asked) -> Target:
    if asked.wraps is None:
        raise InputError(
            "--wrap is needed by kubernetes: name the target whose files it takes, such as vllm"
        )
    target = target_named(asked.wraps)
    if target.wraps:
        raise InputError(
            f"--wrap is '{asked.wraps}', which wraps others itself; name another target"
        )
    return target


def _keys(files: Sequence[File]) -> dict[str, str]:
    found = {file.name: key(file.name) for file in files}
    if len(set(found.values())) < len(
        found
    ):  # only by a collision of digests, or a target's mistake
        raise InputError("kubernetes: two files have one key; give them other names")
    return found


def _split(files: Sequence[File], keys: dict[str, str]) -> list[list[File]]:
    """Return the files in their order, as many to a ConfigMap as it may hold.

    Raises InputError for a file that is too large for any.
    """
    maps: list[list[File]] = [[]]
    held = 0
    for file in files:
        size = len(keys[file.name].encode()) + len(file.text.encode())
        if size > MOST_BYTES:
            raise InputError(
                f"kubernetes: {one_line(file.name)} has {size} bytes, but a ConfigMap holds at "
                f"most {MOST_BYTES}; put this file on a volume instead"
            )
        if held + size > MOST_BYTES:
            maps.append([])
            held = 0
        maps[-1].append(file)
        held += size
    return maps


def _name(asked: Asked, number: int, count: int) -> Value:
    name = label(asked.plan.scenario, 40)
    suffix = f"-{number}" if count > 1 else ""
    return derived(
        f"{name}-{label(asked.wraps or '', 15)}{suffix}",
        "name of the scenario as a DNS-1123 label, and the target",
    )


def _config_map(
    asked: Asked, version: str, files: Sequence[File], keys: dict[str, str], name: Value
) -> dict[str, Document]:
    return {
        "apiVersion": fixed("v1", "Kubernetes' core"),
        "kind": fixed("ConfigMap", "files for Pods to mount"),
        "metadata": {
            "name": name,
            "namespace": of_site(asked.site, "namespace", checked_namespace(asked.site.namespace)),
            "labels": {
                "app.kubernetes.io/managed-by": fixed("dualpath", "who made it"),
                "app.kubernetes.io/part-of": derived(
                    label(asked.plan.scenario, 40), "name of the scenario as a label"
                ),
                "app.kubernetes.io/component": fixed(
                    label(asked.wraps or ""), "the target whose files it holds"
                ),
                "app.kubernetes.io/version": fixed(
                    version if _VERSION.match(version) else label(version),
                    "of that target's software",
                ),
            },
        },
        "data": {
            keys[file.name]: derived(file.text, f"files/{file.name}: {file.about}")
            for file in files
        },
    }


def _kustomization() -> File:
    document: Document = {
        "apiVersion": fixed("kustomize.config.k8s.io/v1beta1", "of kustomize"),
        "kind": fixed("Kustomization", "of kustomize"),
        "resources": [fixed("configmap.yaml", "the ConfigMaps beside it")],
    }
    return yaml_file("kustomization.yaml", "for `kubectl apply -k`", document)


TARGET = Target(
    name="kubernetes",
    software="Kubernetes ConfigMap",
    about="The files of another target (`--wrap`), for Pods to mount.",
    # whose schemas of kubernetes-validate 1.37.0 the files have passed
    versions=("1.28.0", "1.34.0"),
    expresses=("whatever the wrapped target expresses",),
    cannot=("whatever the wrapped target cannot; permissions of scripts",),
    parser="kubernetes-validate --strict, with the schema of Kubernetes' own API",
    apply=(
        "`kubectl apply --server-side -k .` in this folder (without `--server-side` kubectl "
        "keeps a copy in an annotation, which holds 256 KiB at most).",
        "Mount the ConfigMap into the Pods: `volumes: [{name: config, configMap: {name: NAME}}]`.",
        "Go on with the wrapped target's own steps, which the folder's README has.",
    ),
    check=(
        "`kubectl apply --server-side -k . --dry-run=server` accepts the files before anything changes.",
        "`kubectl get configmap -n NAMESPACE -l app.kubernetes.io/managed-by=dualpath` lists them.",
    ),
    roll_back=(
        "`kubectl apply --server-side -k` of the folder of before; restart what reads its files "
        "at start only.",
    ),
    build=build,
    wraps=True,
)
