"""ConfigMaps around other targets' files: every byte, valid keys, no map too large, valid names."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import yaml

from dualpath_model.errors import InputError
from dualpath_model.export import Bundle, Site, Target, all_targets, export, target_named
from dualpath_model.export.documents import File
from dualpath_model.export.target import Asked, texts
from dualpath_model.export.targets import kubernetes
from tests.export.plans import made, plan_file

WRAPPED = sorted(name for name, target in all_targets().items() if not target.wraps)


def maps(files: Any) -> list[dict[str, Any]]:
    return [d for d in yaml.safe_load_all(files["configmap.yaml"]) if d is not None]


def around(monkeypatch: pytest.MonkeyPatch, *files: File) -> dict[str, str]:
    """Return the export around a target of these files."""
    inner = dataclasses.replace(target_named("scheduler"), build=lambda asked: Bundle(files))

    def named(name: str) -> Target:
        return inner if name == "scheduler" else target_named(name)

    monkeypatch.setattr(kubernetes, "target_named", named)
    found = export(target_named("kubernetes"), plan_file(), wraps="scheduler")
    return {**found.files, "notes": "\n".join(found.bundle.notes)}


@pytest.mark.parametrize("wraps", WRAPPED)
def test_every_byte_is_there_twice(wraps: str) -> None:
    """In the ConfigMap, and beside it as a file whose values keep their origins."""
    found = made("kubernetes", wraps=wraps)
    inner = export(target_named(wraps), plan_file())
    held = {k: text for document in maps(found.files) for k, text in document["data"].items()}
    assert sorted(held.values()) == sorted(file.text for file in inner.bundle.files)
    derivations = json.loads(found.files["derivations.json"])["files"]
    for file in inner.bundle.files:
        assert found.files[f"files/{file.name}"] == file.text
        assert set(derivations[f"files/{file.name}"]) == set(file.values)
    assert found.bundle.dropped == inner.bundle.dropped


def test_the_metadata_is_of_plan_and_site() -> None:
    (document,) = maps(made("kubernetes", wraps="llm-d", site=Site(namespace="serving-1")).files)
    metadata = document["metadata"]
    assert metadata["namespace"] == "serving-1"
    assert metadata["name"] == "deepseek-660b-2p4d-the-paper-s-66642403-llm-d"
    assert metadata["labels"]["app.kubernetes.io/component"] == "llm-d"
    assert metadata["labels"]["app.kubernetes.io/version"] == "0.8.0"


def test_the_readme_goes_on_with_the_wrapped_target() -> None:
    vllm = target_named("vllm")
    text = made("kubernetes", wraps="vllm").files["README.md"]
    asked = Asked(plan_file(), Site(), vllm.default_version)
    for step in texts((*vllm.apply, *vllm.check, *vllm.roll_back), asked):
        assert step in text
    assert "Then, with the files of `files/`, as for vLLM:" in text


def test_the_wrapped_target_has_a_version_of_its_own() -> None:
    found = made("kubernetes", wraps="vllm", wraps_version="0.28.0")
    assert found.version == "1.34.0"
    assert maps(found.files)[0]["metadata"]["labels"]["app.kubernetes.io/version"] == "0.28.0"
    assert "vLLM 0.28.0" in found.files["files/nodes/prefill-0.sh"]
    newer = made("kubernetes", wraps="vllm", wraps_version="7").bundle.notes
    assert any("vLLM 7 is newer than 0.33.0" in note for note in newer)
    with pytest.raises(InputError, match="is older than"):
        made("kubernetes", wraps="vllm", wraps_version="0.1")


def test_large_files_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of 500,000 bytes need two maps; one of 1 MiB and its key needs a volume."""
    files = [File(f"{number}.txt", "text", "x" * 500_000) for number in range(3)]
    documents = maps(around(monkeypatch, *files))
    assert [list(d["data"]) for d in documents] == [["0.txt", "1.txt"], ["2.txt"]]
    names = [d["metadata"]["name"] for d in documents]
    assert len(set(names)) == 2
    for document in documents:
        size = sum(len(key) + len(text.encode()) for key, text in document["data"].items())
        assert size <= 2**20
    edge = File("x", "text", "é" * ((2**20 - 1) // 2) + "x")
    assert len(maps(around(monkeypatch, edge))) == 1
    with pytest.raises(
        InputError, match="has 1048577 bytes, but a ConfigMap holds at most 1048576"
    ):
        around(monkeypatch, dataclasses.replace(edge, text=edge.text + "x"))


def test_paths_become_keys_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [File("a/b c.txt", "text", "1\n"), File("a__b-c.txt", "text", "2\n")]
    found = around(monkeypatch, *files)
    (document,) = maps(found)
    keys = [key for key in document["data"] if key != "a__b-c.txt"]
    assert keys[0].endswith("-a__b-c.txt")
    assert "1 files have keys without the '/'" in found["notes"]
    assert f"(a/b c.txt: {keys[0]})" in found["notes"]


def test_scripts_lose_their_permission_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    found = around(monkeypatch, File("run.sh", "text", "true\n", executable=True))
    assert "mount with `defaultMode: 0555`" in found["notes"]


def test_what_cannot_be_wrapped() -> None:
    with pytest.raises(InputError, match="--wrap is needed by kubernetes"):
        export(target_named("kubernetes"), plan_file())
    with pytest.raises(InputError, match="wraps others itself"):
        export(target_named("kubernetes"), plan_file(), wraps="kubernetes")
    with pytest.raises(InputError, match="nearest"):
        export(target_named("kubernetes"), plan_file(), wraps="llmd")
    with pytest.raises(InputError, match="no DNS-1123 label"):
        made("kubernetes", wraps="llm-d", site=Site(namespace="a.b"))
