"""The example scripts, run as a user would: short, through the public API, ending in a picture."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from matplotlib.image import imread

import dualpath_model
import solvers
from dualpath_model import Pool, Scenario, load_node, load_scenario, node_names
from dualpath_model.errors import InfeasibleError
from dualpath_model.workload import scaled
from solvers import alternatives, plan, simulate
from tests.conftest import ROOT

FOLDER = ROOT / "examples" / "scripts"
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "answering")
PUBLIC = {"dualpath_model": dualpath_model, "solvers": solvers}
FAST = {"ten_times_agents": ("--agents", "0")}  # the simulator is compiled for a minute at first


def run(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(FOLDER / script), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "MPLCONFIGDIR": str(cwd / "mpl")}
        | {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
    )


def said(script: str, *arguments: str, cwd: Path) -> str:
    done = run(f"{script}.py", *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@cache
def today(script: str) -> str:
    """Return what a script prints of the scenario that it takes by itself."""
    with TemporaryDirectory() as folder:
        return said(script, *FAST.get(script, ()), cwd=Path(folder))


def numbers(text: str) -> list[float]:
    """Return the numbers of a sentence; 26P29D has two, H20 none."""
    found = re.findall(r"(?<![H\d.,])\d[\d,]*(?:\.\d+)?", text)
    return [float(number.rstrip(",").replace(",", "")) for number in found]


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(ROOT / "examples" / "deepseek-660b-2p4d.yaml")


def test_the_questions_are_there() -> None:
    asked = {"second_storage_nic", "h200_or_h20", "hit_rate", "ten_times_agents"}
    assert asked | {"prefill_decode_ratio"} == {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs_and_ends_in_a_picture(script: Path, tmp_path: Path) -> None:
    done = run(script.name, "qwen-32b-1p2d", *FAST.get(script.stem, ()), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    picture = tmp_path / f"{script.stem}.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    pixels = imread(picture)
    assert pixels.shape[:2] == (520, 900)
    assert 0.01 < (pixels[:, :, :3].min(axis=2) < 0.9).mean() < 0.6  # neither empty nor full
    frame = (pixels[:, :2], pixels[:, -2:], pixels[:2], pixels[-2:])
    assert all(edge.min() == 1.0 for edge in frame)  # nothing runs out of the picture


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_script_is_short_and_public(script: Path) -> None:
    text = script.read_text()
    assert len(text.splitlines()) < (60 if script in SCRIPTS else 80)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not {name.name.split(".")[0] for name in node.names} & {*PUBLIC, "app"}
        if isinstance(node, ast.ImportFrom) and node.module:
            root = node.module.split(".")[0]
            assert root not in {"app", "calibration"}
            if root in PUBLIC:
                assert node.module == root  # the package's own door, no module behind it
                assert {name.name for name in node.names} <= set(PUBLIC[root].__all__)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_docstring_says_question_and_command(script: Path) -> None:
    about = ast.get_docstring(ast.parse(script.read_text())) or ""
    assert "?" in about.splitlines()[0]
    assert f"python examples/scripts/{script.name} [SCENARIO] [--out FILE.png]" in about


def test_second_storage_nic_agrees_with_the_api(scenario: Scenario) -> None:
    plans = []
    for snics in (1, 2, 3, 4):
        changed = scenario
        for pool in Pool.PREFILL, Pool.DECODE:
            changed = changed.with_each_node(pool, lambda n, s=snics: replace(n, snics=s))
        plans.append(alternatives.quick(changed))
    gain = plans[1].throughput / plans[0].throughput - 1
    basic = plans[1].basic / plans[0].basic - 1
    needed = next(i for i, one in enumerate(plans) if one.basic > 0.999 * plans[0].throughput)
    text = today("second_storage_nic")
    assert text.startswith("Yes" if gain >= 0.05 else "No")
    rates = [round(plans[0].throughput, 1), round(plans[0].basic, 1)]
    assert numbers(text) == [round(100 * gain), round(100 * basic), needed, *rates]


def test_hit_rate_agrees_with_the_api(scenario: Scenario) -> None:
    def at(hits: float) -> alternatives.Quick:
        (kind,) = scenario.classes
        work = scaled(kind.workload, hit_rate=hits)
        return alternatives.quick(replace(scenario, classes=(replace(kind, workload=work),)))

    now = scenario.workload.hit_rate
    before, worse = at(now), at(2 * now - 1)
    text = today("hit_rate")
    *lost, above, dual, basic = numbers(text)
    assert lost == [
        round(100 * now, 1),
        round(100 * (2 * now - 1), 1),
        round(100 * (1 - worse.throughput / before.throughput)),
        round(100 * max(0, 1 - worse.basic / before.basic)),  # shorter reads: it may even gain
    ]
    assert [dual, basic] == [round(before.throughput, 1), round(before.basic, 1)]
    apart, together = at((above + 0.05) / 100), at((above - 0.6) / 100)  # a step of the sweep below
    assert apart.throughput > 1.01 * apart.basic
    assert together.throughput < 1.01 * together.basic


def test_h200_or_h20_agrees_with_the_api(scenario: Scenario) -> None:
    def per_gpu(node: str, share: float) -> float:
        gpu = load_node(node).gpu
        decode = tuple(
            replace(n, gpu=gpu, shares=(("decode_mfu", share),)) for n in scenario.cluster.decode
        )
        prefill = scenario.cluster.prefill[:1] * 200
        other = scenario.on(replace(scenario.cluster, prefill=prefill, decode=decode))
        found = alternatives.quick(other)
        assert found.bottleneck.pool is Pool.DECODE
        return found.throughput / sum(n.gpus for n in decode)

    h200 = per_gpu("dgx-h200", scenario.efficiencies.decode_mfu)
    h20 = per_gpu("hgx-h20", 0.34)
    nodes = [load_node(name) for name in node_names()]
    prices = [
        n.price_usd_per_hour / n.gpus
        for n in nodes
        if n.gpu.name == "h200-sxm" and n.price_usd_per_hour
    ]
    assert not [n for n in nodes if n.gpu.name == "h20-sxm" and n.price_usd_per_hour]
    flips = min(prices) * h20 / h200
    found = numbers(today("h200_or_h20"))
    expected = [flips, 100 * h20 / h200, h20, h200, min(prices) / 3.6 / h200]
    assert found == pytest.approx(expected, abs=0.5, rel=0)
    for one, other, digits in zip(found, expected, (2, 0, 2, 2, 3), strict=True):
        assert one == round(other, digits)
    assert h20 * min(prices) == pytest.approx(h200 * flips)  # the same cost a request there


def test_ten_times_agents_finds_the_fewest_nodes(scenario: Scenario) -> None:
    need = 10 * plan(scenario).throughput_requests_per_s * (1 - 1e-6)

    def most(nodes: int) -> tuple[float, float]:  # of every division, Basic apart
        ways = [scenario.with_nodes(p, nodes - p) for p in range(1, nodes)]
        found = [q for q in alternatives.quick_many(ways) if isinstance(q, alternatives.Quick)]
        return max(q.throughput for q in found), max(q.basic for q in found)

    _, nodes, prefill, decode, alone = numbers(today("ten_times_agents"))
    assert prefill + decode == nodes
    divided = alternatives.quick(scenario.with_nodes(int(prefill), int(decode)))
    assert divided.throughput >= need
    assert most(int(nodes) - 1)[0] < need
    assert most(int(alone))[1] >= need > most(int(alone) - 1)[1]


@pytest.mark.slow
def test_ten_times_agents_are_simulated(scenario: Scenario, tmp_path: Path) -> None:
    text = said("ten_times_agents", "--agents", "30", cwd=tmp_path)
    _, _, prefill, decode, _, agents, ttft, slo, tpot, _ = numbers(text)
    found = simulate(scenario.with_nodes(int(prefill), int(decode)), agents=300)
    assert agents == 300
    assert [ttft, tpot] == [round(found.ttft_s["mean"], 1), round(1000 * found.tpot_s["mean"])]
    assert slo == scenario.slo.ttft_s


def test_prefill_decode_ratio_agrees_with_the_api(scenario: Scenario) -> None:
    rates = {}
    for p in range(1, 6):
        try:
            rates[p] = alternatives.quick(scenario.with_nodes(p, 6 - p)).throughput
        except InfeasibleError:
            continue
    best = max(rates, key=lambda p: rates[p])
    found = numbers(today("prefill_decode_ratio"))
    assert found == [6, best, 6 - best, round(rates[best], 1)]


def test_nodes_without_a_storage_nic_are_told_so(tmp_path: Path) -> None:
    aws = str(ROOT / "examples" / "deepseek-v3.2-aws-p5.yaml")
    done = run("second_storage_nic.py", aws, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("has no storage NIC of its own to add another to")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("given", [("no-such-file.yaml",), ("--out", "no/such/folder.png")])
def test_what_cannot_be_read_or_written_is_one_sentence(
    given: tuple[str, ...], tmp_path: Path
) -> None:
    done = run("second_storage_nic.py", *given, cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "no" in done.stderr


def test_readme_has_the_answers_of_today() -> None:
    text = (FOLDER / "README.md").read_text()
    for script in SCRIPTS:
        assert f"`python examples/scripts/{script.name}`" in text
        if script.stem != "ten_times_agents":  # that one is simulated, see the slow test
            assert today(script.stem) in text


@pytest.mark.slow
def test_readme_has_the_simulated_answer_of_today(tmp_path: Path) -> None:
    assert said("ten_times_agents", cwd=tmp_path) in (FOLDER / "README.md").read_text()
