"""The DynamoGraphDeployment (nvidia.com/v1beta1): components, counts, engine flags."""

from __future__ import annotations

import json
from typing import Any

from dualpath_model.export.documents import File, command_file, yaml_file
from dualpath_model.export.site import host, of_site
from dualpath_model.export.target import Asked
from dualpath_model.export.targets._dynamo_config import CONDITIONAL_SINCE, conditional, kvbm
from dualpath_model.export.targets._dynamo_workers import Worker
from dualpath_model.export.targets._names import checked_namespace, label
from dualpath_model.export.values import Document, Value, derived, fixed, plain

SINCE = "1.5.0"
"""The first version whose own templates are v1beta1 (those of 1.4.0 have v1alpha1)."""
KIND_LABEL = "dualpath-nodes"
_REGISTRY = "nvcr.io/nvidia/ai-dynamo"
_FOLDER = "/etc/dualpath"
_KV_DTYPES = {"bf16": "bfloat16"}
"""vLLM's own names, where they differ."""
_FLAG = "its value follows"
_NIXL = {"kv_connector": "NixlConnector"}
_KVBM = {
    "kv_connector": "DynamoConnector",
    "kv_connector_module_path": "kvbm.vllm_integration.connector",
    "kv_role": "kv_both",
}


def name(asked: Asked) -> str:
    """Return the graph's name; the operator makes longer ones of it, so it is short."""
    return label(asked.plan.scenario, 40)


def config_name(asked: Asked) -> str:
    """Return the name of the ConfigMap that holds router.yaml and planner.yaml."""
    return f"{name(asked)}-config"


def router_flags(asked: Asked) -> dict[str, Value | None]:
    """Return the frontend's flags that carry the plan."""
    flags: dict[str, Value | None] = {
        "--router-mode": fixed("kv", "the flags that follow need it"),
        "--router-policy-config": fixed("router.yaml", "file with beta, beside this one"),
    }
    if asked.since(CONDITIONAL_SINCE):
        document = conditional(asked)
        flags["--router-conditional-disagg"] = None
        flags["--router-conditional-disagg-config"] = derived(
            json.dumps(plain(document)),
            "conditional-disagg.json: "
            + "; ".join(f"{key}: {value.how}" for key, value in document.items()),
            **{key: value.value for key, value in document.items() if key != "policy"},
        )
    return flags


def frontend_file(asked: Asked) -> File:
    """Return the frontend's command, for a frontend outside Kubernetes."""
    words = ["python3", "-m", "dynamo.frontend"]
    about = "starts the frontend with its router outside Kubernetes; the graph does it inside"
    head = ["Run it in this folder: router.yaml lies beside it."]
    return command_file("frontend.sh", about, [(words, router_flags(asked))], head=head)


def config_file(asked: Asked, files: list[File]) -> File:
    """Return the ConfigMap that the graph mounts, with the files that it holds."""
    document: Document = {
        "apiVersion": fixed("v1", "Kubernetes' core"),
        "kind": fixed("ConfigMap", "the graph mounts it"),
        "metadata": {
            "name": derived(config_name(asked), "name of the graph"),
            "namespace": of_site(asked.site, "namespace", checked_namespace(asked.site.namespace)),
        },
        "data": {
            file.name: derived(file.text, f"{file.name} of this folder; edit both or export again")
            for file in files
        },
    }
    names = " and ".join(f"`{file.name}`" for file in files)
    about = f"ConfigMap with {names}, which frontend and planner mount"
    return yaml_file("config.yaml", about, document)


def graph_file(asked: Asked, found: tuple[Worker, ...], *, planned: bool) -> File:
    """Return the graph. ``planned``: with a planner."""
    many = {worker.pool for worker in found if sum(w.pool == worker.pool for w in found) > 1}
    document: Document = {
        "apiVersion": fixed("nvidia.com/v1beta1", "of the operator's resource"),
        "kind": fixed("DynamoGraphDeployment", "the operator's resource"),
        "metadata": {
            "name": derived(name(asked), "name of the scenario as a DNS-1123 label"),
            "namespace": of_site(asked.site, "namespace", checked_namespace(asked.site.namespace)),
        },
        "spec": {
            "backendFramework": fixed("vllm", "the engine whose flags these are"),
            "components": [
                _frontend(asked),
                *([_planner(asked)] if planned else []),
                *(_component(asked, worker, select=worker.pool in many) for worker in found),
            ],
        },
    }
    about = "the operator's resource: frontend, planner, workers with their flags and counts"
    head = [f"Dynamo {asked.version}, from plan {asked.plan.scenario}"]
    return yaml_file("graph.yaml", about, document, head=head)


def labels_file(asked: Asked, found: tuple[Worker, ...]) -> File | None:
    """Return the commands that label the nodes of pools with several kinds; None where none has."""
    commands: list[tuple[list[str], dict[str, Value | None]]] = []
    for worker in found:
        if worker.name == worker.pool:
            continue
        for kind in worker.kinds:
            for index in kind.positions:
                node = str(host(asked.site, kind.pool, index).value)
                words = ["kubectl", "label", "--overwrite", "node", "--", node]
                commands.append(([*words, f"{KIND_LABEL}={worker.name}"], {}))
    if not commands:
        return None
    about = "labels the nodes, so that each kind of worker starts on its kind of node"
    return command_file("label-nodes.sh", about, commands)


def _frontend(asked: Asked) -> dict[str, Document]:
    args: list[Document] = [fixed(word, "the frontend") for word in ("-m", "dynamo.frontend")]
    for flag, value in router_flags(asked).items():
        args.append(fixed(flag, _FLAG if value else "switch: use the config that follows"))
        if flag == "--router-policy-config":
            args.append(fixed(f"{_FOLDER}/router.yaml", "router.yaml, mounted from the ConfigMap"))
        elif value is not None:
            args.append(value)
    container = _container(asked, _image(asked, "vllm-runtime"), args)
    return _one(asked, "Frontend", "frontend", container, mounts=True)


def _planner(asked: Asked) -> dict[str, Document]:
    image = fixed(
        f"{_REGISTRY}/dynamo-planner:{asked.version}", "the planner's image of this version"
    )
    words = ("-m", "dynamo.planner", "--config", f"{_FOLDER}/planner.yaml")
    args: list[Document] = [fixed(word, "the planner with planner.yaml") for word in words]
    return _one(asked, "Planner", "planner", _container(asked, image, args), mounts=True)


def _one(
    asked: Asked, title: str, role: str, container: dict[str, Document], *, mounts: bool
) -> dict[str, Document]:
    spec: dict[str, Document] = {"containers": [container]}
    if mounts:
        container["volumeMounts"] = [
            {
                "name": fixed("config", "the ConfigMap"),
                "mountPath": fixed(_FOLDER, "where the flags look"),
                "readOnly": fixed(True, "settings"),
            }
        ]
        how = "config.yaml, which holds router.yaml and planner.yaml"
        spec["volumes"] = [
            {
                "name": fixed("config", "the ConfigMap"),
                "configMap": {"name": derived(config_name(asked), how)},
            }
        ]
    return {
        "name": fixed(title, "name of the component"),
        "type": fixed(role, "its role"),
        "replicas": fixed(1, "one is enough: it decides for all workers"),
        "podTemplate": {"spec": spec},
    }


def _component(asked: Asked, worker: Worker, *, select: bool) -> dict[str, Document]:
    nodes = sum(kind.count for kind in worker.kinds)
    spec: dict[str, Document] = {}
    if select:
        kinds = ", ".join(sorted({kind.name for kind in worker.kinds}))
        spec["nodeSelector"] = {
            KIND_LABEL: fixed(worker.name, f"label that label-nodes.sh gives to nodes {kinds}")
        }
    args: list[Document] = []
    for flag, value in _flags(asked, worker).items():
        args.append(
            fixed(
                flag,
                "flag of the value after it"
                if value
                else "experts are spread over the worker's GPUs",
            )
        )
        args += [value] if value is not None else []
    container = _container(asked, _image(asked, "vllm-runtime"), args, "dynamo.vllm")
    env = kvbm(worker) if worker.pool == "prefill" else {}
    if env:
        container["env"] = [
            {"name": fixed(key, _FLAG), "value": value} for key, value in env.items()
        ]
    gpus = derived(
        str(worker.gpus), "GPUs of one Pod: those of the worker that are on one node", "GPUs"
    )
    container["resources"] = {"limits": {"nvidia.com/gpu": gpus}}
    spec["containers"] = [container]
    component: dict[str, Document] = {
        "name": fixed(worker.name, "pool, and its kind of nodes where it has several"),
        "type": fixed(worker.pool, "its role"),
        "replicas": derived(
            worker.replicas,
            "GPUs of the plan's nodes / GPUs of one worker",
            "workers",
            nodes=nodes,
            gpus_of_node=worker.kinds[0].gpus,
            gpus_of_worker=worker.gpus_of_worker,
        ),
    }
    if worker.nodes > 1:
        component["multinode"] = {
            "nodeCount": derived(
                worker.nodes, "GPUs over which experts are spread / GPUs of a node", "nodes"
            )
        }
    return component | {"podTemplate": {"spec": spec}}


def _flags(asked: Asked, worker: Worker) -> dict[str, Value | None]:
    model = asked.site.model or asked.plan.llm
    flags: dict[str, Value | None] = {
        "--model": of_site(asked.site, "model", model),
        "--disaggregation-mode": fixed(worker.pool, "role of the pool"),
        "--tensor-parallel-size": derived(
            str(worker.tensor), "tensor parallelism of the pool", "GPUs of an engine"
        ),
    }
    dtype = asked.plan.kv_dtype
    flags["--kv-cache-dtype"] = derived(
        _KV_DTYPES.get(dtype, dtype), "kv_dtype of the scenario", kv_dtype=dtype
    )
    if worker.data_parallel > 1:
        flags["--data-parallel-size"] = derived(
            str(worker.data_parallel),
            "GPUs over which experts are spread / tensor parallelism",
            "engines that run in step",
            expert=worker.expert,
            tensor=worker.tensor,
        )
        flags["--enable-expert-parallel"] = None
    quota = min(part.quota_tokens for part in worker.kinds)
    if worker.pool == "prefill" and quota:
        flags["--max-num-batched-tokens"] = derived(
            str(quota),
            "quota as tokens: the most that can be appended to a mean turn's hits with their "
            "attention within quota_s",
            "tokens of a forward batch",
            quota_s=asked.deployment.quota_s,
        )
    flags["--kv-transfer-config"] = fixed(
        json.dumps(_transfer(worker)),
        "hand-off by NIXL"
        + (
            "; before it KVBM, which has the buffer"
            if worker.pool == "prefill" and worker.buffer_bytes is not None
            else ""
        ),
    )
    return flags


def _transfer(worker: Worker) -> dict[str, Any]:
    if worker.pool == "decode":
        return {**_NIXL, "kv_role": "kv_consumer"}
    if worker.buffer_bytes is None:
        return {**_NIXL, "kv_role": "kv_producer"}
    return {
        "kv_connector": "PdConnector",
        "kv_role": "kv_both",
        "kv_connector_module_path": "kvbm.vllm_integration.connector",
        "kv_connector_extra_config": {"connectors": [_KVBM, {**_NIXL, "kv_role": "kv_both"}]},
    }


def _image(asked: Asked, image: str) -> Value:
    default = f"{_REGISTRY}/{image}:{asked.version}"
    return of_site(asked.site, "image", asked.site.image or default)


def _container(
    asked: Asked, image: Value, args: list[Document], module: str | None = None
) -> dict[str, Document]:
    command = ["python3", *(["-m", module] if module else [])]
    return {
        "name": fixed("main", "the container that the operator completes"),
        "image": image,
        "command": [fixed(word, "Dynamo's own entry") for word in command],
        "args": args,
    }
