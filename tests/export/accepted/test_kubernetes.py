"""Kubernetes' own schemas, strictly, on the ConfigMaps around other targets' files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dualpath_model.export import all_targets, export, target_named, write
from tests.export.environment import Answer, check
from tests.export.plans import made, plan_file

pytestmark = pytest.mark.exports
EXAMPLES = ("deepseek-660b-2p4d", "heterogeneous", "qwen-32b-1p2d")
WRAPPED = sorted(name for name, target in all_targets().items() if not target.wraps)


def validate(file: Path, version: str = "1.34.0") -> Answer:
    return check("kubernetes", file, version, checker="kubernetes_files")


@pytest.mark.parametrize("wraps", WRAPPED)
def test_accepted_and_byte_for_byte(tmp_path: Path, wraps: str) -> None:
    write(made("kubernetes", wraps=wraps), tmp_path / "out")
    answer = validate(tmp_path / "out" / "configmap.yaml")
    assert answer.accepted, answer.output
    held = [text for document in answer.values for text in document["data"].values()]
    bundle = export(target_named(wraps), plan_file()).bundle
    assert held == [file.text for file in bundle.files]


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("version", target_named("kubernetes").versions)
def test_accepted_for_more_plans_and_versions(tmp_path: Path, name: str, version: str) -> None:
    write(made("kubernetes", name, wraps="dynamo", version=version), tmp_path / "out")
    answer = validate(tmp_path / "out" / "configmap.yaml", version)
    assert answer.accepted, answer.output
    kustomization = yaml.safe_load((tmp_path / "out" / "kustomization.yaml").read_text())
    assert kustomization["resources"] == ["configmap.yaml"]


@pytest.mark.parametrize("wrong", [{"data": {"a": 1}}, {"datas": {}}, {"kind": "ConfigMaps"}])
def test_wrong_ones_are_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    text = made("kubernetes", wraps="llm-d").files["configmap.yaml"]
    (document,) = yaml.safe_load_all(text)
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(document))
    assert validate(file).accepted
    file.write_text(yaml.safe_dump({**document, **wrong}))
    answer = validate(file)
    assert not answer.accepted, answer.output
