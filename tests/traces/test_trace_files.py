"""Files that cannot be read are refused in one sentence, quickly and in little memory."""

import gzip
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from dualpath_model.errors import InputError
from dualpath_model.traces import load_workload

ROW = b'{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}\n'


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_workload(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "nowhere.jsonl")


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    for content in (b"", b"\n \n", gzip.compress(b""), b"\xef\xbb\xbf"):
        path.write_bytes(content)
        assert "empty" in refusal(path) or "none of the known formats" in refusal(path)


def test_folder_without_traces(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no trace")
    (tmp_path / ".hidden.jsonl").write_bytes(ROW)
    (tmp_path / "deeper").mkdir()
    assert "no trace file" in refusal(tmp_path)


def test_folder_where_a_file_is_meant(tmp_path: Path) -> None:
    from dualpath_model.traces.files import open_trace

    with pytest.raises(InputError, match="not a file"), open_trace(tmp_path):
        pass


def test_a_device_is_not_a_trace() -> None:
    assert "not a file" in refusal(Path("/dev/null"))


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(ROW)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # tests may run as root, whom nothing is denied
    assert "Permission denied" in refusal(path)


def test_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert "Permission denied" in refusal(tmp_path)


def test_a_disk_that_fails_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress(ROW))

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(gzip.GzipFile, "read", fail)
    assert "Input/output error" in refusal(path)


def test_gzip_is_told_by_content(tmp_path: Path) -> None:
    named_plain, named_gzip = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"
    named_plain.write_bytes(gzip.compress(ROW))
    named_gzip.write_bytes(ROW)
    for path in (named_plain, named_gzip):
        assert load_workload(path).turns == 1
    assert load_workload(tmp_path).turns == 2


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.05])
def test_truncated_gzip(tmp_path: Path, kept: float) -> None:
    packed = gzip.compress(b"".join(ROW.replace(b"700", b"%d" % n) for n in range(1, 5000)))
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(packed[: int(len(packed) * kept)])
    assert "ends in the middle" in refusal(path)


def test_corrupt_gzip(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(ROW * 100))
    path = tmp_path / "bad.jsonl.gz"
    for place in (len(packed) // 2, len(packed) - 6):  # in the data, in the check sum
        broken = packed.copy()
        broken[place] ^= 0xFF
        path.write_bytes(broken)
        assert "damaged" in refusal(path)
    path.write_bytes(packed + b"trailing words")
    assert "damaged" in refusal(path)


def test_small_limit_refuses_a_small_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(ROW * 10_000))
    message = refusal(path, max_inflated_bytes=100_000)
    assert "100,000" in message
    assert "max_inflated_bytes" in message
    assert load_workload(path, max_inflated_bytes=10_000 * len(ROW)).turns == 10_000
    path.write_bytes(ROW * 10_000)
    assert "100,000" in refusal(path, max_inflated_bytes=100_000)


@pytest.mark.parametrize("content", [ROW, b" ", b'{"requests": [ ', b"\0"], ids=repr)
def test_a_bomb_of_ten_gigabytes_is_refused_quickly_in_little_memory(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    # gzip members follow one another and inflate to the sum
    path.write_bytes(gzip.compress(content * (2**26 // len(content)), 1) * 160)
    start = time.perf_counter()
    tracemalloc.start()
    message = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "2,147,483,648" in message
    assert peak < 32e6
    assert time.perf_counter() - start < 10


def test_an_endless_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "line.jsonl"
    path.write_bytes(ROW + b'{"input_length": 1' + b" " * 2000 + b"}\n")
    message = refusal(path, max_line_bytes=1000)
    assert "line 2" in message
    assert "1,000" in message
    path.write_bytes(b'{"requests": [' + b" " * 2000 + b"]}\n")
    assert "1,000" in refusal(path, max_line_bytes=1000)


@pytest.mark.parametrize(
    "options", [{"scope": "world"}, {"block_tokens": 0}, {"block_tokens": 1.5}]
)
def test_wrong_options(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(ROW)
    with pytest.raises(InputError, match=next(iter(options))):
        load_workload(path, **options)  # type: ignore[arg-type]


def test_documentation_and_hidden_files_of_a_folder_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "one.jsonl").write_bytes(ROW)
    (tmp_path / "two.csv").write_text("session,append,generate\na,100,5\n")
    workload = load_workload(tmp_path)
    assert workload.turns == 2
    assert "mooncake, 1 file" in workload.source
    assert "plain CSV, 1 file" in workload.source
