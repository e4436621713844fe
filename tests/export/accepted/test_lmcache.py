"""LMCache's own config class accepts the files, reads the plan back, and refuses wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from dualpath_model.export import Site, write
from tests.export.environment import Answer, check
from tests.export.plans import made, plan_file

pytestmark = pytest.mark.exports
EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d", "ds-27b-1p1d")


def read(*files: Path) -> Answer:
    return check("lmcache", *files, checker="lmcache_config")


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_files_say_what_the_plan_says(tmp_path: Path, name: str) -> None:
    write(made("lmcache", name), tmp_path / name)
    files = sorted((tmp_path / name).glob("*.yaml"))
    answer = read(*files)
    assert answer.accepted, answer.output
    plan = plan_file(name)
    deployment = plan.deployment
    engines = sum(kind.count * kind.engines for kind in deployment.pool("decode"))
    receivers = [values for values in answer.values if values["pd_role"] == "receiver"]
    assert len(receivers) == engines
    places = {(v["pd_peer_host"], *v["pd_peer_init_port"]) for v in receivers}
    assert len(places) == engines  # no two listen in one place
    longest = deployment.workload.prompt_tokens.most
    kinds = {f"decode-{p}": k for k in deployment.pool("decode") for p in k.positions}
    for file, values in zip(files, answer.values, strict=True):
        assert values["chunk_size"] == plan.scheduler_parameters.block_tokens
        token = deployment.llm.kv_bytes_per_token
        assert values["pd_buffer_size"] >= longest * token
        assert values["pd_buffer_size"] % (64 * token) == 0
        if file.stem.startswith("decode"):
            kind = kinds[file.stem.partition("-engine")[0]]
        else:
            number = file.stem.rpartition("-")[2]
            kind = deployment.pool("prefill")[int(number) if number.isdigit() else 0]
        if kind.buffer_bytes is None:
            assert "max_local_cpu_size" not in values
            continue
        # LMCache multiplies by 1024**3 (local_cpu_backend.py): together no more than the buffer, and
        # no less than it to one block and a thousandth of a GiB
        both = values["max_local_cpu_size"] * 2**30 + values["pd_buffer_size"]
        left = kind.buffer_bytes / kind.gpus - both
        assert 0 <= left <= 64 * token + 0.001 * 2**30


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("chunk_size: 64", "chunk_sise: 64"), "Unknown configuration key"),
        (("chunk_size: 64", "chunk_size: many"), "Failed to convert"),
        (("pd_role: sender", "pd_role: giver"), "neither sender nor receiver"),
        (("enable_pd: true", "enable_xpyd: true"), "enable_xpyd"),
        (("pd_buffer_device: cpu", ""), "refused"),
        (("min_retrieve_tokens: 64", "min_retrieve_tokens: -1"), "must be >= 0"),
        (("local_cpu: true", "local_cpu: maybe"), "was read as False"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    text = made("lmcache", "qwen-32b-1p2d").files["prefill.yaml"]
    assert change[0] in text
    file = tmp_path / "prefill.yaml"
    file.write_text(text.replace(*change))
    answer = read(file)
    assert not answer.accepted
    assert words in answer.output


def test_awkward_names_come_through(tmp_path: Path) -> None:
    site = Site.model_validate({"store": "/mnt/a: b # c'", "hosts": {"decode": "fd00::{index}"}})
    write(made("lmcache", "qwen-32b-1p2d", site=site), tmp_path / "out")
    answer = read(tmp_path / "out" / "decode-1-engine-0.yaml")
    assert answer.accepted, answer.output
    (values,) = answer.values
    assert values["pd_peer_host"] == "fd00::1"
    assert values["extra_config"] == {"remote_storage_plugin.fs.base_path": "/mnt/a: b # c'"}
