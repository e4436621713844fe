"""Uploads: what is no good is refused in a sentence, leaves nothing, and opens nothing else."""

from __future__ import annotations

import errno
import gzip
import importlib.util
import io
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.dashboard import answers, references, uploads
from app.dashboard.question import Question
from app.dashboard.uploads import MOST_BYTES, Kind, clean, folder, keep, path
from dualpath_model.errors import DualPathError, InputError
from tests.conftest import ROOT

SCENARIO = (ROOT / "examples" / "paper-mean-turn.yaml").read_bytes()
PROFILE = (ROOT / "examples" / "profiles" / "cpu-2-cores.json").read_bytes()
TRACE = b"session,append,generate\na,2000,100\na,300,50\nb,900,80\n"


def stored() -> set[str]:
    return {str(found) for found in uploads._store().rglob("*")}


class Endless(io.RawIOBase):
    """200 MB that nobody has to hold."""

    def __init__(self, size: int = 200 * 10**6) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        part = min(self.left, size if size >= 0 else self.left)
        self.left -= part
        return b"0" * part


BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n".encode()
    for i in range(9)
)


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("s.txt", SCENARIO, Kind.SCENARIO, "must end in .yaml or .yml"),
        ("s.yaml", b"\x89PNG\r\n", Kind.SCENARIO, "not a text file"),
        ("s.yaml", b"a: [", Kind.SCENARIO, "not valid YAML"),
        ("s.yaml", b"name: x\n", Kind.SCENARIO, "missing"),
        ("s.yaml", BOMB, Kind.SCENARIO, "entries"),
        ("s.yaml", b"[" * 100_000, Kind.SCENARIO, "nested too deep|nesting depth"),
        ("s.yaml", b"0" * (MOST_BYTES[Kind.SCENARIO] + 1), Kind.SCENARIO, "larger than 1 MB"),
        ("p.json", b"{}", Kind.PROFILE, "is not a profile"),
        ("p.json", TRACE, Kind.PROFILE, "not valid JSON"),
        ("p.json", b"[" * 100_000, Kind.PROFILE, "nested too deeply"),
        ("t.csv", PROFILE, Kind.TRACE, "none of the known formats"),
        ("t.csv", b"", Kind.TRACE, "empty"),
        ("t.csv", b"session,append,generate\na,-5,x\n", Kind.TRACE, "line 2"),
        ("t.exe", TRACE, Kind.TRACE, "must end in"),
        ("t.csv.gz", gzip.compress(b"0" * (300 * 2**20), 1, mtime=0), Kind.TRACE, "inflate|longer"),
        ("t.gz", gzip.compress(TRACE, mtime=0)[:-9], Kind.TRACE, "gzip stream"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_what_is_no_good_leaves_nothing(name: str, content: bytes, kind: Kind, words: str) -> None:
    before = stored()
    with pytest.raises(InputError, match=words) as caught:
        keep(name, content, kind)
    assert stored() == before
    text = str(caught.value)
    assert "/tmp" not in text and "\n" not in text
    assert clean(name) in text


def test_200_mb_are_not_read_to_the_end() -> None:
    before, stream = stored(), Endless()
    with pytest.raises(InputError, match="larger than 100 MB"):
        keep("t.csv", stream, Kind.TRACE)  # type: ignore[arg-type]
    assert stream.left > 90 * 10**6
    assert stored() == before


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd.csv",
        "..\\..\\boot.csv",
        "/etc/x.csv",
        "a\0b.csv",
        "<img src=x>.csv",
        "é" * 300 + ".csv",
    ],
)
def test_names_are_labels(name: str) -> None:
    kept = keep(name, TRACE, Kind.TRACE)
    assert kept.name == clean(name)
    assert path(kept.digest).parent == uploads._store()
    made = folder(((kept.name, kept.digest),), None)
    assert (made / kept.name).resolve() == path(kept.digest)
    assert uploads._store() in made.parents


@given(st.text())
def test_cleaning_leaves_one_harmless_name(name: str) -> None:
    found = clean(name)
    assert found and len(found) <= 80
    assert not set(found) & set("/\\\0<>\"'&\n") and not found.startswith(".")
    assert clean(found) == found


@pytest.mark.parametrize("digest", ["", "x", "../../../etc/passwd", "0" * 63, "0" * 64, "A" * 64])
def test_digests_of_a_link_are_checked(digest: str) -> None:
    with pytest.raises(InputError, match="upload it again"):
        path(digest)
    with pytest.raises(InputError, match="upload it again"):
        folder((("x.csv", digest),), None)


@pytest.mark.parametrize("name", ["../x.csv", "a/b.csv", "", ".hidden", "traces", "a\0.csv"])
def test_names_of_a_link_are_checked(name: str) -> None:
    kept = keep("t.csv", TRACE, Kind.TRACE)
    with pytest.raises(InputError, match="upload it again"):
        folder(((name, kept.digest),), None)


# ---- the server's disk -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "the server has no room for the file, and nothing was changed"),
        (errno.EDQUOT, "the server has no room for the file, and nothing was changed"),
        (errno.EACCES, r"the server cannot keep the file \(Permission denied\)"),
    ],
)
@pytest.mark.parametrize("step", ["mkstemp", "fdopen", "replace", "mkdtemp", "symlink", "rename"])
def test_a_disk_that_takes_nothing_is_a_sentence(
    step: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep("t.csv", TRACE, Kind.TRACE)
    before = {found for found in stored() if not found.endswith("/views")}

    def full(*args: object, **more: object) -> None:
        if step == "fdopen":
            os.close(args[0])  # type: ignore[arg-type]
        raise OSError(code, os.strerror(code))

    where: dict[str, Any] = {
        "mkstemp": tempfile,
        "fdopen": os,
        "replace": Path,
        "mkdtemp": tempfile,
        "symlink": Path,
        "rename": Path,
    }
    name = "symlink_to" if step == "symlink" else step
    with monkeypatch.context() as patched:
        patched.setattr(where[step], name, full)
        with pytest.raises(InputError, match=words) as caught:
            if step in ("mkstemp", "fdopen", "replace"):
                keep("other.csv", TRACE + b"z,5,5\n", Kind.TRACE)
            else:
                folder(((f"{step} {code}.csv", kept.digest),), None)
    assert "/tmp" not in str(caught.value)
    assert {found for found in stored() if not found.endswith("/views")} == before


def test_those_who_come_first_share_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("first_uploads", uploads.__file__)
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "first_uploads", fresh)
    spec.loader.exec_module(fresh)
    real = tempfile.mkdtemp

    def slow(*args: Any, **more: Any) -> str:
        time.sleep(0.1)
        return str(real(*args, **more))

    monkeypatch.setattr(tempfile, "mkdtemp", slow)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fresh._store())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1


def test_advice_is_for_who_uploads() -> None:
    bomb = gzip.compress(b"0" * (300 * 2**20), 1, mtime=0)
    with pytest.raises(InputError, match="split it, or read it with the command line") as caught:
        keep("t.csv.gz", bomb, Kind.TRACE)
    assert "max_inflated_bytes" not in str(caught.value)


def test_a_scenario_is_kept_to_the_letter() -> None:
    given = SCENARIO.replace(b"\n", b"\r\n")
    kept = keep("s.yaml", given, Kind.SCENARIO)
    assert uploads.text(kept.digest).encode() == given


def test_the_oldest_files_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    first = keep("a.csv", TRACE + b"c,1,1\n", Kind.TRACE)
    monkeypatch.setattr(uploads, "MOST_STORED_BYTES", first.size_bytes + 10)
    second = keep("b.csv", TRACE + b"d,12,1\n", Kind.TRACE)
    assert path(second.digest).is_file()
    with pytest.raises(InputError):
        path(first.digest)


# ---- what an uploaded scenario may refer to --------------------------------------------------------


def hostile(change: Any) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(SCENARIO)
    data["cluster"] = {
        "prefill": {"node": "paper-hopper", "count": 1},
        "decode": [{"node": "paper-hopper", "count": 1}],
    }
    change(data)
    return data


def put(*where: str | int) -> Any:
    def change(name: str) -> Any:
        def at(data: Any) -> None:
            for part in where[:-1]:
                data = data[part]
            data[where[-1]] = name

        return at

    return change


PLACES = {
    "llm": put("llm"),
    "cluster": put("cluster"),
    "prefill node": put("cluster", "prefill", "node"),
    "decode node": put("cluster", "decode", 0, "node"),
    "profile": lambda name: put("cluster", "prefill", "node")(
        {"base": "paper-hopper", "profile": name}
    ),
    "trace": lambda name: put("workload")({"trace": name}),
    "trace path": lambda name: put("workload")({"trace": {"path": name}}),
    "class": lambda name: (
        lambda data: data.update(
            workload=None, classes=[{"name": "a", "share": 1.0, "workload": {"trace": name}}]
        )
    ),
}
PATHS = [
    "/etc/passwd.json",
    "../../etc/hosts.yaml",
    "~/x.json",
    "a/../../b.yaml",
    "C:\\x.json",
    "..",
    "x.json",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", PATHS)
def test_no_file_is_opened_that_was_not_uploaded(
    place: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = hostile(PLACES[place](name))
    text = yaml.safe_dump(data)
    real = Path.open
    opened: list[Path] = []

    def watched(self: Path, *args: Any, **more: Any) -> Any:
        opened.append(self)
        return real(self, *args, **more)

    monkeypatch.setattr(Path, "open", watched)
    with pytest.raises(DualPathError) as caught:
        answers.scenario_of(Question("", text))
    assert not [found for found in opened if ROOT not in found.resolve().parents]
    assert "root:" not in str(caught.value)


def test_an_uploaded_scenario_may_name_uploads() -> None:
    trace = keep("my sessions.csv", TRACE, Kind.TRACE)
    profile = keep("node.json", PROFILE, Kind.PROFILE)
    data = hostile(put("workload")({"trace": "my sessions.csv"}))
    data["llm"] = "qwen2.5-0.5b"
    data["kv_dtype"] = "bf16"
    for group in (data["cluster"]["prefill"], data["cluster"]["decode"][0]):
        group["node"] = {"base": "paper-hopper", "profile": "node.json"}
    text = yaml.safe_dump(data)
    files = ((trace.name, trace.digest), (profile.name, profile.digest))
    scenario = answers.scenario_of(Question("", text, files))
    assert scenario.workload.turns == 3
    assert scenario.cluster.prefill[0].measured is not None
    with pytest.raises(InputError, match="not among the uploaded ones"):
        answers.scenario_of(Question("", text, files[:1]))
    assert set(references.needed(data)) == {"my sessions.csv", "node.json"}


def test_what_is_damaged_is_told_with_the_users_name() -> None:
    data = json.loads(PROFILE)
    data["version"] = 99
    with pytest.raises(InputError, match=r"^my profile\.json"):
        keep("my profile.json", json.dumps(data).encode(), Kind.PROFILE)
