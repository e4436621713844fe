"""What holds for every target, also the one that is added tomorrow."""

from __future__ import annotations

import copy
import fnmatch
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.output import as_read_back
from dualpath_model.errors import InputError
from dualpath_model.export import Export, Site, all_targets, export, parse_plan, target_named, write
from dualpath_model.export.target import texts
from dualpath_model.scenario import ScenarioSpec, resolve
from solvers import planner
from solvers.deployment import plan_document
from tests.conftest import ROOT
from tests.export.plans import made, plan_data, plan_file

TARGETS = sorted(all_targets())
EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d", "recorded-sessions")
EXPECTED = {
    "dynamo",
    "grafana",
    "kubernetes",
    "llm-d",
    "lmcache",
    "mooncake",
    "opensm",
    "prometheus",
    "roce",
    "scheduler",
    "sglang",
    "vllm",
}


def wrapped(target: str) -> dict[str, str]:
    return {"wraps": "vllm"} if target_named(target).wraps else {}


def test_all_targets_are_there() -> None:
    assert set(TARGETS) == EXPECTED


def _shape(name: str) -> str:
    """Many files whose names differ in numbers alone share a row of the README."""
    return re.sub(r"\d+", "#", name)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_files_are_well_formed_and_listed(target: str, name: str) -> None:
    found = made(target, name, **wrapped(target))
    _check_files(found)
    readme = found.files["README.md"]
    shown = {_shape(name) for name in re.findall(r"`([^`\n]+)`", readme)}
    for file in found.files:
        assert file == "README.md" or _shape(file) in shown
    for dropped in found.bundle.dropped:
        assert dropped.what, dropped
        assert dropped.why, dropped
        assert dropped.effect, dropped
    derivations = json.loads(found.files["derivations.json"])
    for file, values in derivations["files"].items():
        for pointer, value in values.items():
            assert value["how"], (file, pointer)
        if not values or not file.endswith((".json", ".yaml", ".yml")):
            continue
        documents = _parsed(file, found.files[file])
        document = documents[0] if len(documents) == 1 else documents
        if f"/{len(documents) - 1}" in {"/" + p.split("/")[1] for p in values}:
            document = documents
        for pointer, value in values.items():
            assert _at(document, pointer) == value["value"], (file, pointer)


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_plan_gives_the_same_bytes(target: str, tmp_path: Path) -> None:
    """Also in another process, whose sets and hashes are in another order."""
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_data()))
    out = tmp_path / "out"
    more = [word for key, value in wrapped(target).items() for word in (f"--{key[:4]}", value)]
    command = [sys.executable, "-m", "app.cli", "export", target, str(plan), "--out", str(out)]
    subprocess.run(
        [*command, *more],
        check=True,
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )
    here = made(target, **wrapped(target)).files
    there = {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
    assert there == {name: text.encode() for name, text in here.items()}
    year = re.compile(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]")
    assert not [name for name, text in here.items() if year.search(text)]


NASTY = st.sampled_from(
    [
        "$(>canary)",
        "`>canary`",
        "'; >canary; '",
        '"; >canary; "',
        "a: b # c",
        "- {x: 1}",
        "{{ .Values.x }} ${HOME} %d",
        "back\\slash \\u0041 \\",
        "| table ] ( [link](x) <b>",
        "é 𝒳 \u2028",
    ]
)
_LINES = st.sampled_from(["two\nlines: x", "\r\n", "\x1b[2J", "\t", "end\n---\n"])


@pytest.mark.parametrize("target", TARGETS)
@given(name=NASTY | _LINES, node=NASTY | _LINES, site=NASTY)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_name_escapes_its_quotes(
    target: str, tmp_path: Path, name: str, node: str, site: str
) -> None:
    """Names of scenario, LLM and nodes (a plan file may hold anything) and everything of the site but
    hosts, which are names or addresses or nothing (``test_site.py``): all files stay well formed, hold
    the same keys, and no script does anything but name its commands.
    """
    data: Any = copy.deepcopy(plan_data())
    data["scenario"] = data["llm"] = data["deployment"]["llm"]["name"] = name
    for kind in data["deployment"]["kinds"]:
        kind["name"] = kind["gpu"] = node
    place = Site.model_validate(
        {
            "model": site,
            "store": f"/{site}",
            "image": site,
            "compute_devices": [site],
            "compute_interfaces": [site],
            "storage_interfaces": [site],
        }
    )
    try:
        found = export(target_named(target), parse_plan(data), place, **wrapped(target))
    except InputError as error:  # a target may refuse what it cannot hold, in one sentence
        assert len(str(error).splitlines()) == 1
        return
    _check_files(found)
    for file, text in found.files.items():
        if file.endswith((".sh", ".env")):
            _runs_nothing(text, tmp_path)


def _runs_nothing(text: str, folder: Path) -> None:
    """Let bash expand every line with no program to be found: nothing may be written."""
    script = folder / "script"
    script.write_text("command_not_found_handle() { return 0; }\nset +e\n" + text, encoding="utf-8")
    environment = {"PATH": str(folder / "nothing"), "HOME": str(folder)}
    subprocess.run(
        ["/bin/bash", str(script)],
        cwd=folder,
        env=environment,
        capture_output=True,
        timeout=20,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    script.unlink()
    assert not list(folder.iterdir())


def _check_files(found: Export) -> None:
    for name, text in found.files.items():
        assert text.endswith("\n"), name
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", text), name
        _parsed(name, text)
        if name.endswith((".sh", ".env")):
            done = subprocess.run(
                ["bash", "-n"], input=text.encode(), capture_output=True, check=False
            )
            assert done.returncode == 0, (name, done.stderr.decode())


def _parsed(name: str, text: str) -> list[Any]:
    if name.endswith(".json"):
        return [json.loads(text, parse_constant=pytest.fail)]
    if name.endswith((".yaml", ".yml")):
        return list(yaml.safe_load_all(text))
    return []


def _at(document: Any, pointer: str) -> Any:
    found = document
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        found = found[int(key)] if isinstance(found, list) else found[key]
    return found


_FILE = re.compile(r"(?<![-\w/.:])((?:[\w*-]+/)*[\w*-]+\.(?:json|ya?ml|sh|env|conf|yml))\b")
_THEIRS = {"opensm.conf.before", "prometheus.yml"}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d", "pull"])
def test_steps_name_files_that_are_there(target: str, name: str) -> None:
    """In every version, whatever an export has left out."""
    plan = parse_plan(_pull_plan()) if name == "pull" else plan_file(name)
    kind = target_named(target)
    for version in kind.versions:
        found = export(kind, plan, version=version, **wrapped(target))
        steps = found.files["README.md"].partition("## Apply")[2]
        there = [file.removeprefix("files/") for file in found.files]
        for file in _FILE.findall(steps):
            pattern = re.sub(r"-N\b", "-*", file)
            assert file in _THEIRS or fnmatch.filter(there, pattern), (version, file)
        tiers = "".join(text for file, text in found.files.items() if file.endswith(".sh"))
        if "(p2p)" in steps:
            assert '"type": "p2p"' in tiers


@cache
def _pull_plan() -> Any:
    text = (ROOT / "examples" / "qwen-32b-1p2d.yaml").read_text()
    data = yaml.safe_load(text) | {"framework": "vllm-pull"}
    scenario = resolve(ScenarioSpec.model_validate(data), ROOT / "examples")
    return as_read_back(plan_document(scenario, planner.plan(scenario, intervals=False)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_assumed_of_the_site_is_listed(target: str, name: str) -> None:
    found = made(target, name, **wrapped(target))
    table = found.files["README.md"].partition("## Assumed of your site")[2].partition("\n## ")[0]
    for file in found.bundle.files:
        for value in file.values.values():
            assert value.site or ("assumed" not in value.how and value.origin != "site"), value
            for field in value.site:
                assert f"| `{field}` |" in table, (file.name, field)


_SAID = ("split", "alpha", "beta", "quota", "Z", "dual values", "read weights", "QoS", "buffers")


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_target_cannot_is_in_its_readme(target: str) -> None:
    """Whatever the list of targets says a target cannot, its README says what that costs."""
    kind = target_named(target)
    cannot, found = "; ".join(kind.cannot), made(target, **wrapped(target)).bundle
    left_out = "; ".join(dropped.what for dropped in found.dropped)
    for word in _SAID:
        if re.search(rf"\b{word}\b", cannot):
            assert re.search(rf"\b{word}\b", left_out), (word, left_out)
    for dropped in found.dropped:
        assert dropped.why
        assert dropped.effect


_ODD = {
    "no hits": {"hit_tokens": 0, "miss_tokens": 4000, "output_tokens": 200},
    "one token each": {"hit_tokens": 1, "miss_tokens": 1, "output_tokens": 1},
    "no output": {"hit_tokens": 32000, "miss_tokens": 400, "output_tokens": 0},
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("moments", _ODD.values(), ids=_ODD)
def test_turns_of_nothing(target: str, moments: dict[str, int]) -> None:
    """No figure of a turn divides: files are whole, with finite values, whatever is zero."""
    found = export(target_named(target), parse_plan(_plan_of_moments(**moments)), **wrapped(target))
    _check_files(found)
    assert not re.search(r"\b(nan|inf)\b", found.files["README.md"])
    assert not [name for name, text in found.files.items() if re.search(r"\bnan\b", text.lower())]


@cache
def _plan_of_moments(**moments: int) -> Any:
    data = {
        "name": "odd turns",
        "llm": "deepseek-v3.2",
        "kv_dtype": "fp8",
        "cluster": "paper-2p4d",
        "workload": {"moments": moments},
    }
    spec = ScenarioSpec.model_validate(data)
    scenario = resolve(spec, ROOT)
    return as_read_back(plan_document(scenario, planner.plan(scenario, intervals=False)))


@pytest.mark.parametrize("target", TARGETS)
def test_versions(target: str) -> None:
    kind = target_named(target)
    assert kind.default_version == kind.versions[-1]
    for version in kind.versions:
        found = export(kind, parse_plan(plan_data()), version=version, **wrapped(target))
        assert version in found.files["README.md"].splitlines()[0].replace("\\", "")
    with pytest.raises(InputError, match="is older than"):
        kind.checked_version("0.0.0.1")
    with pytest.raises(InputError, match="is not a version"):
        kind.checked_version("newest")


@pytest.mark.parametrize("target", TARGETS)
def test_an_operator_is_told_what_to_do(target: str, tmp_path: Path) -> None:
    kind = target_named(target)
    for steps in (kind.apply, kind.check, kind.roll_back, kind.expresses):
        assert steps
        assert all(step.strip() for step in texts(steps))
    write(made(target, **wrapped(target)), tmp_path / "out")
    scripts = {path.name for path in (tmp_path / "out").rglob("*.sh")}
    runnable = {p.name for p in (tmp_path / "out").rglob("*.sh") if os.access(p, os.X_OK)}
    assert scripts == runnable
