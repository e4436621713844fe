"""SGLang's own parsers and checks accept the commands, read the plan back, and refuse wrong ones."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dualpath_model.export import Site, export, target_named, write
from tests.export.environment import Answer, check
from tests.export.plans import made, plan_file

pytestmark = pytest.mark.exports
EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d", "mixed-traffic")


def words_of(script: Path) -> list[str]:
    """Return the arguments of a script's command as bash reads them."""
    text = script.read_text().replace("\\\n", " ")
    words = shlex.split(text, comments=True)
    return words[words.index("-m") + 2 :]


def serve(tmp_path: Path, *commands: list[str], mode: str = "serve") -> Answer:
    file = tmp_path / "commands.json"
    file.write_text(json.dumps(commands))
    return check("sglang", mode, file, checker="sglang_args")


def folder(tmp_path: Path, name: str) -> Path:
    out = tmp_path / name
    write(made("sglang", name), out)
    return out


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_command_is_taken_and_says_what_the_plan_says(tmp_path: Path, name: str) -> None:
    out = folder(tmp_path, name)
    scripts = sorted((out / "nodes").glob("*.sh"))
    plan = plan_file(name)
    assert len(scripts) == plan.prefill_nodes + plan.decode_nodes
    answer = serve(tmp_path, *map(words_of, scripts))
    assert answer.accepted, answer.output
    deployment = plan.deployment
    of = {f"{k.pool}-{position}": k for k in deployment.kinds for position in k.positions}
    for script, read in zip(scripts, answer.values, strict=True):
        kind, given = of[script.stem], read["given"]
        assert given["disaggregation_mode"] == kind.pool
        engines = read["attn_dp_size"] * read["dp_size"]
        nodes = given.get("nnodes", 1)
        assert engines == nodes * kind.engines
        assert given.get("tp_size", 1) * read["dp_size"] == nodes * kind.gpus
        assert given["page_size"] == plan.scheduler_parameters.block_tokens
        # what SGLang's own rules make of the flags: a chunk of one engine is the quota, to a page
        if kind.pool == "prefill":
            assert 0 <= kind.quota_tokens - read["chunk"] < 64 + 2
            assert read["chunk"] % 64 == 0
            running = given["max_running_requests"] // read["attn_dp_size"]
            prompt = deployment.workload.prompt_tokens.mean
            assert running == math.floor(kind.beta_tokens / prompt)
        else:
            assert read["disable_radix_cache"] is False
            running = given["max_running_requests"] // read["attn_dp_size"]
            assert kind.decode_batch is not None
            assert running >= kind.decode_batch
        if kind.buffer_bytes is not None and "hicache_size" in given:
            left = kind.buffer_bytes - given["hicache_size"] * 1e9 * kind.gpus
            assert 0 <= left < 1e9 * kind.gpus
            assert read["hicache_host_memory_fraction"] is None  # auto-sizing is off
        assert read["hicache_mem_layout"] == "page_first"
        backend, threshold, base, per_ki, _ = read["extra"]
        assert backend == {"file_storage_path": "/mnt/kv-cache"}
        assert threshold == 64
        assert base == deployment.alpha_s
        slowest = 1024 * deployment.llm.read_bytes_per_token / per_ki
        assert slowest <= kind.storage_read_bytes_per_s * (1 + 1e-5)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_config_says_the_same_as_the_command(tmp_path: Path, name: str) -> None:
    site = Site(compute_devices=[f"mlx5_{n}" for n in range(8)])
    found = made("sglang", name, site=site)
    out = tmp_path / name
    write(found, out)
    pairs = []
    for file in found.bundle.files:
        if file.name.startswith("nodes/"):
            words = words_of(out / file.name)
            config = out / file.about.split("`")[1]  # "flags as in `config/prefill.yaml`"
            shared = {f"--{key}" for key in yaml.safe_load(config.read_text())}
            pairs += [words, ["--config", str(config), *_without(words, shared)]]
    answer = serve(tmp_path, *pairs)
    assert answer.accepted, answer.output
    for command, config in zip(answer.values[::2], answer.values[1::2], strict=True):
        extra = "hicache_storage_backend_extra_config"
        assert json.loads(command["given"].pop(extra)) == json.loads(config["given"].pop(extra))
        assert command == config


def _without(words: list[str], flags: set[str]) -> list[str]:
    own: list[str] = []
    keep = False
    for word in words:
        if word.startswith("--"):
            keep = word not in flags
        if keep:
            own.append(word)
    return own


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_router_knows_every_server(tmp_path: Path, name: str) -> None:
    out = folder(tmp_path, name)
    answer = serve(tmp_path, words_of(out / "router.sh"), mode="router")
    assert answer.accepted, answer.output
    (read,) = answer.values
    groups = {(node.pool, node.group) for node in plan_file(name).deployment.nodes}
    assert read["pd"] is True
    assert len(read["prefill"]) == sum(pool == "prefill" for pool, _ in groups)
    assert len(read["decode"]) == sum(pool == "decode" for pool, _ in groups)
    assert read["prefill"][0] == ["http://prefill-0.example.internal:8000", 8998]
    assert not serve(
        tmp_path, [*words_of(out / "router.sh"), "--prefil-policy", "x"], mode="router"
    ).accepted


WRONG: list[tuple[str, list[str], list[str], str]] = [
    ("prefill", [], ["--hicache-si", "8"], "refused by the parser"),
    ("prefill", [], ["--hicache-sizes", "8"], "refused by the parser"),
    ("prefill", ["--hicache-size"], ["--hicache-size", "9.5"], "refused by the parser"),
    ("prefill", [], ["--enable-pd-role-switch"], "expert parallelism"),
    (
        "decode",
        ["--disaggregation-transfer-backend"],
        ["--disaggregation-transfer-backend", "fake"],
        "incompatible",
    ),
    ("decode", ["--disaggregation-decode-enable-radix-cache"], [], "mutually exclusive"),
    (
        "decode",
        ["--hicache-storage-backend"],
        ["--disaggregation-decode-enable-offload-kvcache"],
        "hicache-storage-backend is provided",
    ),
    (
        "prefill",
        [],
        ["--disaggregation-decode-enable-offload-kvcache"],
        "only supported for decode side",
    ),
    ("prefill", ["--page-size"], ["--page-size", "48"], "divisible by page_size"),
    ("prefill", ["--ep-size"], ["--ep-size", "8"], "equal to tp_size"),
    (
        "prefill",
        ["--hicache-storage-backend-extra-config"],
        ["--hicache-storage-backend-extra-config", '{"prefetch_threshold": 64.5}'],
        "prefetch_threshold must be int",
    ),
]


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[str | None]:
    """What SGLang says of each of the wrong commands, and of the right ones behind them."""
    folder_of = tmp_path_factory.mktemp("refused")
    out = folder(folder_of, "deepseek-660b-2p4d")
    right = {role: words_of(out / "nodes" / f"{role}-0.sh") for role in ("prefill", "decode")}
    wrong = [[*_without(right[role], set(drop)), *add] for role, drop, add, _ in WRONG]
    answer = serve(folder_of, *wrong, *right.values(), mode="refused")
    assert answer.accepted, answer.output
    return list(answer.values)


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_wrong_commands_are_refused(refusals: list[str | None], number: int) -> None:
    words = WRONG[number][3]
    assert words in (refusals[number] or "taken")


def test_the_right_ones_beside_them_are_not(refusals: list[str | None]) -> None:
    assert refusals[len(WRONG) :] == [None, None]


def test_an_llm_with_windows_is_taken(tmp_path: Path) -> None:
    plan = plan_file("qwen-32b-1p2d")
    llm = replace(plan.deployment.llm, read_bytes_per_token=131072.0)
    plan = replace(plan, deployment=replace(plan.deployment, llm=llm))
    write(export(target_named("sglang"), plan), tmp_path / "out")
    command = words_of(tmp_path / "out" / "nodes" / "decode-0.sh")
    answer = serve(tmp_path, command)
    assert answer.accepted, answer.output
    assert answer.values[0]["given"]["disaggregation_decode_enable_offload_kvcache"] is True


def test_a_role_can_be_switched_without_experts(tmp_path: Path) -> None:
    """As the README's note says."""
    out = folder(tmp_path, "qwen-32b-1p2d")
    command = [*words_of(out / "nodes" / "prefill-0.sh"), "--enable-pd-role-switch"]
    assert serve(tmp_path, command).accepted


def test_a_wrong_key_in_the_config_is_refused(tmp_path: Path) -> None:
    out = folder(tmp_path, "qwen-32b-1p2d")
    config = out / "config" / "prefill.yaml"
    config.write_text(config.read_text() + "hicache-sise: 4\n")
    answer = serve(tmp_path, ["--config", str(config)])
    assert not answer.accepted
    assert "refused by the parser" in answer.output
