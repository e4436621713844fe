"""Outputs of measuring tools: what is read from them, and one sentence for what cannot be used."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.importers import TOOLS, import_output
from calibration.importers.common import ONE_RUN, SMALL_BYTES
from calibration.rooms import Measured
from dualpath_model.errors import InputError
from dualpath_model.profile import FIGURES, Machine, Part, PartName, Profile, Setting

OUTPUTS = Path(__file__).parent / "outputs"

GOOD = {
    "fio": [
        "fio_randread.json",
        "fio_json_plus.json",
        "fio_two_at_once.json",
        "fio_group_reporting.json",
        "fio_several_jobs.json",
        "fio_small_reads.json",
        "fio_text_before.json",
    ],
    "iperf3": [
        "iperf3_one.json",
        "iperf3_four_streams.json",
        "iperf3_reverse.json",
        "iperf3_both_ways.json",
        "iperf3_udp.json",
    ],
    "perftest": [
        "perftest_write_gbits.txt",
        "perftest_write_all_sizes.txt",
        "perftest_both_ways.txt",
        "perftest_latency.txt",
        "perftest_latency_duration.txt",
    ],
    "nvbandwidth": ["nvbandwidth_one_gpu.json", "nvbandwidth_two_gpus.json"],
    "nccl-tests": ["nccl_sendrecv.txt", "nccl_all_reduce.txt"],
}
ALL_GOOD = [(tool, name) for tool, names in GOOD.items() for name in names]
BAD = {
    "fio_error.json": ("fio", "No such file or directory"),
    "fio_text.txt": ("fio", "no JSON object"),
    "iperf3_error.json": ("iperf3", "unable to connect to server: Connection refused"),
    "perftest_error.txt": ("perftest", "Couldn't connect to node-b:18515"),
    "nvbandwidth_error.json": ("nvbandwidth", "CUDA_ERROR_NO_DEVICE"),
    "nccl_wrong.txt": ("nccl-tests", "26 FAILED"),
}


def read(tool: str, name: str) -> Measured:
    return import_output(tool, OUTPUTS / name)[1]


def json_of(name: str) -> dict[str, Any]:
    text = (OUTPUTS / name).read_text()
    data: dict[str, Any] = json.loads(text[text.index("{") :])
    return data


JSON = {name: json_of(name) for _, name in ALL_GOOD if name.endswith(".json")}
JSON_TOOLS = [(tool, name) for tool, name in ALL_GOOD if name in JSON]


def refused(tool: str, path: Path) -> str:
    """Return the sentence with which a file is refused, after checking that it is one."""
    with pytest.raises(InputError) as caught:
        import_output(tool, path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(path) in sentence
    assert len(sentence) < 700
    assert "; " in sentence or ", so " in sentence, "no remedy"
    return sentence


def as_part(part: PartName, measured: Measured) -> Part:
    """Return the part, by way of a whole profile's text: what is imported can be written and read."""
    machine = Machine(host="a", system="b", cpu="c", cores=1, memory_bytes=1.0)
    made = Part(
        machine=machine,
        date="2026-11-24",
        tools=measured.tools,
        settings=measured.settings,
        series=measured.series,
        fits=measured.fits,
        figures=measured.figures,
        warnings=measured.warnings,
    )
    profile = Profile(format="dualpath-profile", version=1, name="test", parts={part: made})
    text = profile.model_dump_json().encode()
    assert Profile.model_validate_json(text) == profile
    return made


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write_it(content: str | bytes) -> Path:
        path = tmp_path / "output"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_it


@pytest.mark.parametrize(("tool", "name"), ALL_GOOD)
def test_every_sample_becomes_a_part_that_can_be_written_and_read(tool: str, name: str) -> None:
    part, measured = import_output(tool, OUTPUTS / name)
    as_part(part, measured)
    assert part is TOOLS[tool].part
    assert measured.settings["file"] == name
    sources = {one.name for one in measured.series} | {one.name for one in measured.fits}
    for figure, found in measured.figures.items():
        assert FIGURES[figure].part is part
        assert found.source in sources


@pytest.mark.parametrize(("tool", "name"), ALL_GOOD)
def test_an_empty_interval_is_explained_and_only_an_empty_one(tool: str, name: str) -> None:
    for found in read(tool, name).figures.values():
        assert (found.low == found.high) is (ONE_RUN in found.note)


def test_every_sample_file_is_described_and_used() -> None:
    described = (OUTPUTS / "README.md").read_text()
    used = {name for _, name in ALL_GOOD} | set(BAD) | {"several.fio"}
    assert {path.name for path in OUTPUTS.iterdir()} == used | {"README.md"}
    assert [name for name in used if name not in described] == []


@pytest.mark.parametrize("name", BAD)
def test_an_error_that_the_tool_reported_is_passed_on(name: str) -> None:
    tool, said = BAD[name]
    assert said in refused(tool, OUTPUTS / name)


def test_extra_settings_are_added_and_win() -> None:
    extra: dict[str, Setting] = {"command": "fio a b", "device": "nvme0n1"}
    _, measured = import_output("fio", OUTPUTS / "fio_randread.json", extra=extra)
    assert measured.settings["command"] == "fio a b"
    assert measured.settings["device"] == "nvme0n1"
    assert import_output("fio", OUTPUTS / "fio_randread.json")[1].settings["device"] == "vda"


# fio


def test_fio_gives_bytes_over_runtime_and_its_own_percentiles() -> None:
    measured = read("fio", "fio_randread.json")
    told = json_of("fio_randread.json")["jobs"][0]["read"]
    (one,) = measured.series[0].samples
    assert (one.amount, one.seconds) == (told["io_bytes"], told["runtime"] / 1000)
    assert one.at["block_bytes"] == 2**20
    assert one.at["depth"] == 8
    rate = measured.figures["storage_read_bytes_per_s"]
    assert rate.value == pytest.approx(told["bw_bytes"], rel=1e-3)
    assert rate.low < rate.value < rate.high
    p99 = told["clat_ns"]["percentile"]["99.000000"] * 1e-9
    assert measured.figures["storage_read_p99_s"].value == pytest.approx(p99)
    assert measured.tools == {"fio": "3.33"}
    assert measured.settings["measured_on"] == json_of("fio_randread.json")["time"]


def test_fio_jobs_of_one_file_each_give_their_figure_and_the_mixed_one_gives_none() -> None:
    measured = read("fio", "fio_several_jobs.json")
    jobs = {job["jobname"]: job for job in json_of("fio_several_jobs.json")["jobs"]}
    expected = {
        "storage_read_bytes_per_s": jobs["blocks"]["read"],
        "storage_write_bytes_per_s": jobs["writes"]["write"],
        "storage_sequential_bytes_per_s": jobs["sequential"]["read"],
    }
    for figure, told in expected.items():
        rate = told["io_bytes"] / told["runtime"] * 1000
        assert measured.figures[figure].value == pytest.approx(rate)
    assert len(measured.series[0].samples) == 7  # the mixed job reads and writes
    assert "storage_read_while_writing_share" not in measured.figures


def test_fio_jobs_that_ran_at_once_are_added_up() -> None:
    measured = read("fio", "fio_two_at_once.json")
    told = [job["read"] for job in json_of("fio_two_at_once.json")["jobs"]]
    together = sum(one["io_bytes"] for one in told) / max(one["runtime"] for one in told) * 1000
    assert measured.figures["storage_read_bytes_per_s"].value == pytest.approx(together)
    raw, at_once = measured.series
    assert len(raw.samples) == 2
    assert at_once.samples[0].at["depth"] == 16
    p99 = [one["clat_ns"]["percentile"]["99.000000"] * 1e-9 for one in told]
    found = measured.figures["storage_read_p99_s"]
    assert (found.low, found.high) == (pytest.approx(min(p99)), pytest.approx(max(p99)))


def test_fio_with_group_reporting_counts_the_queues_of_all_clones() -> None:
    (one,) = read("fio", "fio_group_reporting.json").series[0].samples
    assert one.at["depth"] == 16


def test_fio_small_reads_one_by_one_are_the_latency_and_no_rate() -> None:
    measured = read("fio", "fio_small_reads.json")
    told = json_of("fio_small_reads.json")["jobs"][0]["read"]["lat_ns"]
    found = measured.figures["storage_read_latency_s"]
    assert found.value == pytest.approx(told["mean"] * 1e-9)
    error = told["stddev"] / told["mean"] / told["N"] ** 0.5
    assert found.high / found.value - 1 == pytest.approx(1.96 * error, rel=1e-3)
    assert "storage_read_bytes_per_s" not in measured.figures


def test_fio_json_plus_gives_the_same_fields_as_json() -> None:
    plus, plain = read("fio", "fio_json_plus.json"), read("fio", "fio_randread.json")
    assert plus.figures.keys() == plain.figures.keys()
    assert plus.series[0].samples[0].at.keys() == plain.series[0].samples[0].at.keys()


def test_fio_through_the_page_cache_and_one_deep_is_warned_of() -> None:
    measured = read("fio", "fio_text_before.json")
    assert measured.series[0].samples[0].at["depth"] == 1
    told = " ".join(measured.warnings)
    assert "page cache" in told
    assert "1 deep" in told


@pytest.mark.parametrize("at", [{"percentile": {}}, {"percentile": {"50.000000": 3}}])
def test_fio_with_other_percentiles_has_no_p99(
    write: Callable[[str | bytes], Path], at: dict[str, Any]
) -> None:
    data = json_of("fio_randread.json")
    data["jobs"][0]["read"]["clat_ns"].update(at)
    _, measured = import_output("fio", write(json.dumps(data)))
    assert "storage_read_p99_s" not in measured.figures
    assert "storage_read_bytes_per_s" in measured.figures


def test_fio_without_jobs_or_without_bytes_is_one_sentence(
    write: Callable[[str | bytes], Path],
) -> None:
    data = json_of("fio_randread.json")
    assert "no jobs" in refused("fio", write(json.dumps({**data, "jobs": []})))
    data["jobs"][0]["read"]["io_bytes"] = 0
    assert "read or wrote a byte" in refused("fio", write(json.dumps(data)))


def test_fio_jobs_that_only_ran_mixed_give_no_figure(write: Callable[[str | bytes], Path]) -> None:
    data = json_of("fio_several_jobs.json")
    data["jobs"] = [job for job in data["jobs"] if job["jobname"] == "mixed"]
    _, measured = import_output("fio", write(json.dumps(data)))
    assert measured.figures == {}
    assert any("stonewall" in line for line in measured.warnings)


# iperf3


def test_iperf3_intervals_are_samples_and_their_median_is_the_figure() -> None:
    measured = read("iperf3", "iperf3_four_streams.json")
    told = [row["sum"] for row in json_of("iperf3_four_streams.json")["intervals"]]
    assert [one.amount for one in measured.series[0].samples] == [t["bytes"] for t in told]
    rates = sorted(t["bytes"] / t["seconds"] for t in told)
    found = measured.figures["network_bytes_per_s"]
    assert found.value == pytest.approx(rates[1])
    assert found.low < found.value < found.high
    assert measured.settings["streams"] == 4
    assert measured.settings["host"] == "vm"


def test_iperf3_reverse_is_the_other_direction() -> None:
    assert read("iperf3", "iperf3_reverse.json").settings["direction"] == "in"
    assert read("iperf3", "iperf3_one.json").settings["direction"] == "out"


def test_iperf3_both_ways_is_each_directions_mean_and_unequal_ones_are_warned_of() -> None:
    measured = read("iperf3", "iperf3_both_ways.json")
    assert set(measured.figures) == {"network_both_ways_bytes_per_s"}
    first = measured.series[0].samples[0]
    told = json_of("iperf3_both_ways.json")["intervals"][0]
    both = told["sum"]["bytes"] + told["sum_bidir_reverse"]["bytes"]
    assert first.amount == both / 2
    assert any("one direction had less" in line for line in measured.warnings)


def test_iperf3_over_udp_counts_what_arrived_and_warns_of_the_limit() -> None:
    measured = read("iperf3", "iperf3_udp.json")
    told = json_of("iperf3_udp.json")["end"]["sum_received"]
    rate = told["bytes"] / told["seconds"]
    assert measured.figures["network_bytes_per_s"].value == pytest.approx(rate)
    assert any("-b" in line for line in measured.warnings)


def test_iperf3_on_one_host_is_said_to_be_the_loopback() -> None:
    assert any("loopback" in line for line in read("iperf3", "iperf3_one.json").warnings)


def test_iperf3_warm_up_stalls_and_the_last_scrap_stay_out_of_the_figure(
    write: Callable[[str | bytes], Path],
) -> None:
    data = json_of("iperf3_one.json")
    good = data["intervals"][1]["sum"]
    changes: list[dict[str, Any]] = [
        {"omitted": True, "bytes": 5},
        {},
        {"bytes": 0},
        {"seconds": 0.01, "bytes": 7},
    ]
    data["intervals"] = [{"sum": {**good, **change}} for change in changes]
    _, measured = import_output("iperf3", write(json.dumps(data)))
    rate = good["bytes"] / good["seconds"]
    assert measured.figures["network_bytes_per_s"].value == pytest.approx(rate)
    assert len(measured.series[0].samples) == 4
    assert any("without a byte" in line for line in measured.warnings)


def test_iperf3_that_moved_nothing_is_one_sentence(write: Callable[[str | bytes], Path]) -> None:
    data = json_of("iperf3_one.json")
    for row in data["intervals"]:
        row["sum"]["bytes"] = 0
    assert "no interval moved a byte" in refused("iperf3", write(json.dumps(data)))


def test_iperf3_without_intervals_gives_its_total(write: Callable[[str | bytes], Path]) -> None:
    data = {**json_of("iperf3_one.json"), "intervals": []}
    _, measured = import_output("iperf3", write(json.dumps(data)))
    told = data["end"]["sum_received"]
    found = measured.figures["network_bytes_per_s"]
    assert found.value == pytest.approx(told["bytes"] / told["seconds"])
    assert found.note == ONE_RUN
    assert "sum_received" in refused("iperf3", write(json.dumps({**data, "end": {}})))


# perftest


def table(title: str, unit: str, *rows: str) -> str:
    header = f" #bytes     #iterations    BW peak[{unit}]    BW average[{unit}]   MsgRate[Mpps]"
    return "\n".join([f"                    {title}", header, *rows, "-" * 80, ""])


@pytest.mark.parametrize(
    ("title", "unit", "bytes_per_s"),
    [
        ("RDMA_Write BW Test", "MB/sec", 1000 * 2**20),
        ("RDMA_Read BW Test", "Gb/sec", 1000e9 / 8),
        ("Send Bidirectional BW Test", "Gb/sec", 1000e9 / 8 / 2),
        ("RDMA_Write Bidirectional BW Test", "MB/sec", 1000 * 2**20 / 2),
        ("RDMA_Write Post List BW Test", "MB/sec", 1000 * 2**20),
    ],
)
def test_perftest_units_are_2_to_the_20_and_1e9_bits_and_both_ways_is_halved(
    write: Callable[[str | bytes], Path], title: str, unit: str, bytes_per_s: float
) -> None:
    path = write(table(title, unit, " 65536  5000  0.00  1000.00   0.1"))
    _, measured = import_output("perftest", path)
    (figure,) = measured.figures
    both = "Bidirectional" in title
    assert figure == ("network_both_ways_bytes_per_s" if both else "network_bytes_per_s")
    assert measured.figures[figure].value == pytest.approx(bytes_per_s)
    (one,) = measured.series[0].samples
    assert one.amount == 65536
    assert "derived" in measured.series[0].meaning


def test_perftest_of_all_sizes_takes_the_largest_message() -> None:
    measured = read("perftest", "perftest_write_all_sizes.txt")
    sizes = [one.at["bytes"] for one in measured.series[0].samples]
    assert sizes == [2**k for k in range(1, 24)]
    last = measured.series[0].samples[-1]
    assert measured.figures["network_bytes_per_s"].value == last.amount / last.seconds
    assert measured.settings["command"] == "ib_write_bw -d mlx5_0 -a node-b"


def test_perftest_run_several_times_gives_the_median_with_an_interval(
    write: Callable[[str | bytes], Path],
) -> None:
    runs = [
        table("RDMA_Write BW Test", "Gb/sec", f" 65536 5000 0 {r} 0.1") for r in (380, 392, 390)
    ]
    _, measured = import_output("perftest", write("".join(runs)))
    found = measured.figures["network_bytes_per_s"]
    assert found.value == pytest.approx(390e9 / 8)
    assert found.low < found.value < found.high
    assert measured.fits[0].indices == [0, 1, 2]


def test_perftest_prefers_writes_to_reads_at_the_same_size(
    write: Callable[[str | bytes], Path],
) -> None:
    read_run = table("RDMA_Read BW Test", "Gb/sec", " 65536 5000 0 300 0.1")
    write_run = table("RDMA_Write BW Test", "Gb/sec", " 65536 5000 0 390 0.1")
    _, measured = import_output("perftest", write(read_run + write_run))
    assert measured.figures["network_bytes_per_s"].value == pytest.approx(390e9 / 8)
    assert len(measured.series[0].samples) == 2


def test_perftest_latency_is_that_of_the_smallest_message_with_its_own_deviation() -> None:
    measured = read("perftest", "perftest_latency.txt")
    found = measured.figures["network_latency_s"]
    assert found.value == pytest.approx(1.07e-6)
    assert found.high / found.value - 1 == pytest.approx(1.96 * 0.05 / 1.07 / 1000**0.5, rel=0.01)
    assert measured.series[0].samples[0].at["p99.9_s"] == pytest.approx(3.41e-6)
    assert any("CPU frequency" in line for line in measured.warnings)


def test_perftest_of_small_messages_only_has_no_rate(write: Callable[[str | bytes], Path]) -> None:
    path = write(table("RDMA_Write BW Test", "Gb/sec", f" {SMALL_BYTES} 5000 0 3 0.1"))
    _, measured = import_output("perftest", path)
    assert measured.figures == {}
    assert any("-s" in line for line in measured.warnings)


# nvbandwidth


def test_nvbandwidth_inside_a_gpu_counts_reads_and_writes() -> None:
    measured = read("nvbandwidth", "nvbandwidth_one_gpu.json")
    cases = {c["name"]: c for c in json_of("nvbandwidth_one_gpu.json")["nvbandwidth"]["testcases"]}

    def printed(name: str) -> float:
        return float(cases[name]["bandwidth_matrix"][0][0]) * 1e9

    found = {name: one.value for name, one in measured.figures.items()}
    assert found["hbm_copy_bytes_per_s"] == pytest.approx(2 * printed("device_local_copy"))
    there, back = printed("host_to_device_memcpy_ce"), printed("device_to_host_memcpy_ce")
    assert found["host_to_device_bytes_per_s"] == pytest.approx(there)
    assert found["device_to_host_bytes_per_s"] == pytest.approx(back)
    busy = [
        printed(f"{way}_bidirectional_memcpy_ce") for way in ("host_to_device", "device_to_host")
    ]
    assert found["both_ways_share"] == pytest.approx(sum(busy) / (there + back))
    assert any("Waived" in line for line in measured.warnings)


def test_nvbandwidth_on_two_gpus_has_a_spread_over_them() -> None:
    measured = read("nvbandwidth", "nvbandwidth_two_gpus.json")
    for found in measured.figures.values():
        assert found.low < found.value < found.high
        assert "2 GPUs" in found.note
    between = next(s for s in measured.series if "device_to_device" in s.name)
    assert [one.at for one in between.samples] == [{"row": 0, "gpu": 1}, {"row": 1, "gpu": 0}]
    assert measured.settings["host"] == "node-a"


def test_nvbandwidth_without_one_way_rates_has_no_share_and_says_so(
    write: Callable[[str | bytes], Path],
) -> None:
    data = json_of("nvbandwidth_one_gpu.json")
    cases = data["nvbandwidth"]["testcases"]
    data["nvbandwidth"]["testcases"] = [c for c in cases if c["name"] != "device_to_host_memcpy_ce"]
    _, measured = import_output("nvbandwidth", write(json.dumps(data)))
    assert "both_ways_share" not in measured.figures
    assert any("both_ways_share needs" in line for line in measured.warnings)


def test_nvbandwidth_case_that_failed_is_passed_on(write: Callable[[str | bytes], Path]) -> None:
    data = json_of("nvbandwidth_one_gpu.json")
    data["nvbandwidth"]["testcases"][2] |= {"status": "Error", "error": "out of memory"}
    path = write(json.dumps(data))
    assert "bidirectional_memcpy_ce: out of memory" in refused("nvbandwidth", path)


# nccl-tests


def test_nccl_sendrecv_gives_the_largest_messages_rate_and_the_smallest_ones_time() -> None:
    measured = read("nccl-tests", "nccl_sendrecv.txt")
    rows = [
        line.split()
        for line in (OUTPUTS / "nccl_sendrecv.txt").read_text().splitlines()
        if line.strip() and not line.startswith(("#", "NCCL"))
    ]
    largest = float(rows[-1][0]) / (float(rows[-1][5]) * 1e-6)
    assert measured.figures["collective_bytes_per_s"].value == pytest.approx(largest)
    assert measured.figures["collective_bytes_per_s"].value == pytest.approx(
        float(rows[-1][6]) * 1e9, rel=0.01
    )
    smallest = float(rows[0][5]) * 1e-6
    assert measured.figures["collective_latency_s"].value == pytest.approx(smallest)
    assert len(measured.series[0].samples) == 2 * len(rows)
    assert measured.settings["host"] == "node-a, node-b"
    assert measured.tools == {"nccl-tests": "2.17.6", "nccl": "2.28.7+cuda13.0"}


def test_nccl_all_reduce_is_kept_but_gives_no_figure_and_one_host_is_warned_of() -> None:
    measured = read("nccl-tests", "nccl_all_reduce.txt")
    assert measured.figures == {}
    assert any("sendrecv_perf" in line for line in measured.warnings)
    assert any("one host" in line for line in measured.warnings)


def test_nccl_lines_that_mpirun_labelled_are_read_alike(
    write: Callable[[str | bytes], Path],
) -> None:
    lines = (OUTPUTS / "nccl_sendrecv.txt").read_text().splitlines()
    plain = read("nccl-tests", "nccl_sendrecv.txt")
    for label in ("[1,0]<stdout>: ", "0: "):
        _, labelled = import_output("nccl-tests", write("\n".join(label + line for line in lines)))
        assert labelled.figures == plain.figures


def test_nccl_rows_without_a_reduction_are_read_alike(write: Callable[[str | bytes], Path]) -> None:
    text = (OUTPUTS / "nccl_sendrecv.txt").read_text().replace("  none  ", "        ")
    _, measured = import_output("nccl-tests", write(text))
    assert measured.figures == read("nccl-tests", "nccl_sendrecv.txt").figures


def test_nccl_runs_of_several_tests_in_one_file_are_one_sentence(
    write: Callable[[str | bytes], Path],
) -> None:
    names = ("nccl_sendrecv.txt", "nccl_all_reduce.txt")
    both = "".join((OUTPUTS / name).read_text() for name in names)
    assert "one file for each" in refused("nccl-tests", write(both))


def test_nccl_wrong_data_without_a_summary_is_passed_on(
    write: Callable[[str | bytes], Path],
) -> None:
    text = (OUTPUTS / "nccl_wrong.txt").read_text()
    assert "#wrong 3" in refused("nccl-tests", write(text.replace("26 FAILED", "")))


# what cannot be used


@pytest.mark.parametrize(("tool", "name"), ALL_GOOD)
def test_another_tools_output_is_recognised(tool: str, name: str) -> None:
    for other in TOOLS:
        if other != tool:
            assert f"use `calibrate import {tool}`" in refused(other, OUTPUTS / name)


def test_an_unknown_tool_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tool 'iperf' is unknown; the nearest are iperf3"):
        import_output("iperf", tmp_path / "none")


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\x7fELF\x02\x01\0\0", "not text"),
        (b"\xff\xfe{\0", "not text"),
        (b"hello\n", "run `"),
        (b"[1, 2]", "run `"),
        (b"{}", "run `"),
        (b'{"a": NaN}', "run `"),
        (b"[" * 100_000, "run `"),
        (b'{"a":' * 100_000, "run `"),
        (b'{"a": ' + b"9" * 5000 + b"}", "run `"),
    ],
)
def test_content_of_no_tool_is_one_sentence(
    write: Callable[[str | bytes], Path], tool: str, content: bytes, said: str
) -> None:
    assert said in refused(tool, write(content))


@pytest.mark.parametrize("tool", TOOLS)
def test_a_missing_file_a_folder_and_a_device_are_one_sentence(tool: str, tmp_path: Path) -> None:
    assert "is not there" in refused(tool, tmp_path / "none.json")
    assert "folder or a device" in refused(tool, tmp_path)
    assert "folder or a device" in refused(tool, Path("/dev/zero"))


def test_a_file_of_1_gb_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    path.touch()
    os.truncate(path, 10**9)  # sparse: it takes no space
    assert "1,000 MB, at most 64 MB" in refused("fio", path)


@pytest.mark.parametrize("value", [-1, "x", None, True, [], {}, 1e999])
def test_a_damaged_number_names_its_field(
    write: Callable[[str | bytes], Path], value: object
) -> None:
    data = json_of("fio_randread.json")
    data["jobs"][0]["read"]["runtime"] = value
    text = json.dumps(data).replace("Infinity", "1e999")
    assert "jobs[0]: read: runtime is" in refused("fio", write(text))


@pytest.mark.parametrize("value", [0, 1e-30, 1e30])
def test_a_time_that_no_machine_has_is_one_sentence(
    write: Callable[[str | bytes], Path], value: float
) -> None:
    data = json_of("fio_randread.json")
    data["jobs"][0]["read"]["runtime"] = value
    assert "jobs[0]: read: the " in refused("fio", write(json.dumps(data)))


@pytest.mark.parametrize("value", ["0", "-5.0", "nan", "inf", "1e40", "many"])
def test_a_rate_that_no_machine_has_is_one_sentence(
    write: Callable[[str | bytes], Path], value: str
) -> None:
    row = f" 65536  5000  0.00  {value}   0.1"
    assert "line 3" in refused("perftest", write(table("RDMA_Write BW Test", "Gb/sec", row)))
    data = json_of("nvbandwidth_one_gpu.json")
    data["nvbandwidth"]["testcases"][0]["bandwidth_matrix"] = [[value]]
    assert "bandwidth_matrix[0][0]" in refused("nvbandwidth", write(json.dumps(data)))


def test_a_wrong_json_type_names_its_field(write: Callable[[str | bytes], Path]) -> None:
    for key, value in {"jobs": {}, "disk_util": 7, "global options": []}.items():
        path = write(json.dumps({**json_of("fio_randread.json"), key: value}))
        assert f"{key} is" in refused("fio", path)


def test_text_with_braces_around_the_json_is_skipped(write: Callable[[str | bytes], Path]) -> None:
    text = (OUTPUTS / "nvbandwidth_one_gpu.json").read_text()
    noisy = f"WARNING: {{{{ }}}}\n{{ not this\n{text}WARNING: }}}}}} after\n"
    found = import_output("nvbandwidth", write(noisy))[1].figures
    assert found == read("nvbandwidth", "nvbandwidth_one_gpu.json").figures


def test_json_that_breaks_off_names_its_line(write: Callable[[str | bytes], Path]) -> None:
    for tool, name in JSON_TOOLS:
        lines = (OUTPUTS / name).read_text().splitlines()
        sentence = refused(tool, write("\n".join(lines[: len(lines) // 2])))
        assert "breaks off in line" in sentence


def test_two_runs_in_one_file_are_one_sentence(write: Callable[[str | bytes], Path]) -> None:
    for tool, name in JSON_TOOLS:
        text = (OUTPUTS / name).read_text()
        assert "2 JSON objects" in refused(tool, write(f"{text}\n{text}"))


def test_a_table_cut_off_in_a_row_names_the_line(write: Callable[[str | bytes], Path]) -> None:
    for tool, name in (
        ("perftest", "perftest_write_all_sizes.txt"),
        ("nccl-tests", "nccl_sendrecv.txt"),
    ):
        lines = (OUTPUTS / name).read_text().splitlines()[:25]
        cut = "\n".join(lines).rsplit(maxsplit=2)[0]
        assert "line 25" in refused(tool, write(cut))


# whatever is damaged: figures or one sentence

WEIRD = ["", "0", "-1", "NaN", "1e999", "1e-300", "9" * 30, "null", "true", "[]", "{}", '"x"', "\n"]
WEIRD += ['"\\ud800"', "\x00", "é", ",", "}", "]", '"', "N/A", ":", "\\", " "]
CONTENT = {name: (OUTPUTS / name).read_bytes() for _, name in ALL_GOOD}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "output"


def measured_or_refused(tool: str, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        part, measured = import_output(tool, path)
    except InputError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)
    else:
        as_part(part, measured)


@settings(max_examples=150)
@given(which=st.sampled_from(ALL_GOOD), share=st.floats(0, 1))
def test_an_output_cut_off_anywhere_is_measured_or_refused(
    place: Path, which: tuple[str, str], share: float
) -> None:
    tool, name = which
    measured_or_refused(tool, place, CONTENT[name][: int(share * len(CONTENT[name]))])


@settings(max_examples=250)
@given(
    which=st.sampled_from(ALL_GOOD),
    changes=st.lists(
        st.tuples(
            st.floats(0, 1),
            st.integers(0, 12),
            st.sampled_from([w.encode() for w in WEIRD]) | st.binary(max_size=3),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_an_output_changed_anywhere_is_measured_or_refused(
    place: Path, which: tuple[str, str], changes: list[tuple[float, int, bytes]]
) -> None:
    tool, name = which
    content = CONTENT[name]
    for share, dropped, new in changes:
        at = int(share * len(content))
        content = content[:at] + new + content[at + dropped :]
    measured_or_refused(tool, place, content)


def leaves(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the places of all values in a JSON tree, objects and lists included."""
    inside = data.items() if isinstance(data, dict) else enumerate(data)
    found = []
    for key, value in inside:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += leaves(value, (*path, key))
    return found


PLACES = {name: leaves(data) for name, data in JSON.items()}
VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, 1, -1, 1e-12, 1e300, 10**400, "", "x", "7", "\ud800", [], {}]
)


@settings(max_examples=400)
@given(which=st.sampled_from(JSON_TOOLS), share=st.floats(0, 0.999), value=VALUES)
def test_a_field_with_any_other_value_is_measured_or_refused(
    place: Path, which: tuple[str, str], share: float, value: object
) -> None:
    tool, name = which
    data = json.loads(json.dumps(JSON[name]))
    where = PLACES[name][int(share * len(PLACES[name]))]
    inner = data
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    measured_or_refused(tool, place, json.dumps(data).encode())


@settings(max_examples=250)
@given(
    which=st.sampled_from([pair for pair in ALL_GOOD if pair[1] not in JSON]),
    share=st.floats(0, 0.999),
    word=st.sampled_from([w for w in WEIRD if w.strip()]),
)
def test_a_table_with_any_other_word_is_measured_or_refused(
    place: Path, which: tuple[str, str], share: float, word: str
) -> None:
    tool, name = which
    words = CONTENT[name].decode().split(" ")
    words[int(share * len(words))] = word
    measured_or_refused(tool, place, " ".join(words).encode())
