"""Our own check of an EndpointPickerConfig: keys, plugin types, declared references, one handler."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

KNOWN = yaml.safe_load((Path(__file__).parent / "llm_d_keys.yaml").read_text())
MODES = ("requests", "tokens", "hybrid")


def problems(config: Any) -> list[str]:
    """Return what is wrong with a config."""
    found = _unknown(config, KNOWN["top"], "the document")
    if config.get("apiVersion") not in KNOWN["api_versions"]:
        found.append(f"apiVersion {config.get('apiVersion')}")
    if config.get("kind") != "EndpointPickerConfig":
        found.append(f"kind {config.get('kind')}")
    declared: dict[str, dict[str, Any]] = {}
    for plugin in config.get("plugins", []):
        found += _unknown(plugin, KNOWN["plugin"], f"plugin {plugin.get('type')}")
        name = plugin.get("name", plugin.get("type"))
        if name in declared:
            found.append(f"plugin {name} is there twice")
        declared[name] = plugin
        found += _plugin(plugin)
    for profile in config.get("schedulingProfiles", []):
        found += _profile(profile, declared)
    found += _handler(config, declared)
    return found


def _plugin(plugin: dict[str, Any]) -> list[str]:
    kind, parameters = plugin.get("type"), plugin.get("parameters") or {}
    if kind not in KNOWN["types"] + KNOWN["handlers"] + KNOWN["deciders"] + KNOWN["pickers"]:
        return [f"type {kind} is none that we know"]
    found = []
    if kind in KNOWN["parameters"]:
        found += _unknown(parameters, KNOWN["parameters"][kind], f"parameters of {kind}")
    for key, value in parameters.items():
        if key.lower().endswith(("tokens", "tokenconcurrency", "tokenstomatch")) and (
            not isinstance(value, int) or isinstance(value, bool) or value < 1
        ):
            found.append(f"{kind}.{key} is {value!r}, no whole number from 1")
    if kind == "concurrency-detector":
        mode = parameters.get("concurrencyMode", "requests")
        if mode not in MODES:
            found.append(f"concurrencyMode {mode}")
        if mode == "requests" and "maxTokenConcurrency" in parameters:
            found.append("maxTokenConcurrency is not read in mode requests")
    return found


def _profile(profile: dict[str, Any], declared: dict[str, dict[str, Any]]) -> list[str]:
    where = f"profile {profile.get('name')}"
    found = _unknown(profile, KNOWN["profile"], where)
    for use in profile.get("plugins", []):
        found += _unknown(use, KNOWN["use"], where)
        if use.get("pluginRef") not in declared:
            found.append(f"{where} refers to {use.get('pluginRef')}, which is not declared")
        weight = use.get("weight", 1.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            found.append(f"{where}: weight {weight!r}")
    return found


def _handler(config: dict[str, Any], declared: dict[str, dict[str, Any]]) -> list[str]:
    handlers = [p for p in declared.values() if p.get("type") in KNOWN["handlers"]]
    if len(handlers) != 1:
        return [f"{len(handlers)} profile handlers, not one"]
    parameters = handlers[0].get("parameters") or {}
    profiles = {profile.get("name") for profile in config.get("schedulingProfiles", [])}
    found = []
    for stage, name in parameters.get("profiles", {}).items():
        if name not in profiles:
            found.append(f"the handler's {stage} profile {name} is not there")
    for stage, name in parameters.get("deciders", {}).items():
        if declared.get(name, {}).get("type") not in KNOWN["deciders"]:
            found.append(f"the handler's {stage} decider {name} is not declared")
    return found


def _unknown(mapping: dict[str, Any], allowed: list[str], where: str) -> list[str]:
    return [f"unknown key {key} of {where}" for key in mapping if key not in allowed]


def main() -> None:
    """Exit with 0 and what was read, or with 3 and what is wrong."""
    config = yaml.safe_load(Path(sys.argv[1]).read_text())
    found = problems(config)
    if found:
        print("refused: " + "; ".join(found))
        sys.exit(3)
    print(json.dumps(config))


if __name__ == "__main__":
    main()
