"""The default efficiencies: one home, sourced, and the arithmetic of the derived ones."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace

import pytest

from dualpath_model.catalog.efficiencies import default_efficiencies, efficiency_entries
from dualpath_model.catalog.llms import load_llm
from dualpath_model.catalog.nodes import load_gpu
from dualpath_model.cluster import Efficiencies


def test_one_home() -> None:
    """Every field is in the file and has no second default in the dataclass."""
    assert [field.name for field in fields(Efficiencies)] == list(efficiency_entries())
    assert all(field.default is MISSING for field in fields(Efficiencies))
    found = default_efficiencies()
    for name, entry in efficiency_entries().items():
        assert getattr(found, name) == entry.value


@pytest.mark.parametrize("name", list(efficiency_entries()))
def test_entries_are_sourced(name: str) -> None:
    entry = efficiency_entries()[name]
    assert entry.source and all(source.strip() for source in entry.source)
    assert entry.grade in ("a", "b", "c")
    assert entry.meaning.endswith(".") and entry.meaning.count(".") == 1


def test_prefill_mfu_arithmetic() -> None:
    """52.3k input tokens/s on a node of 8 H100, DeepSeek-V3, prompts of 2,000 tokens."""
    llm, peak = load_llm("deepseek-v3"), load_gpu("h100-sxm").flop_per_s("fp8")

    def mfu(form: str) -> float:
        flops = replace(llm, prefill_attention_form=form).prefill_flops(0, 2000).total / 2000
        return float(52_300 / 8 * flops / peak)

    assert round(mfu("decompressed"), 2) == default_efficiencies().prefill_mfu == 0.25
    assert mfu("decompressed") == pytest.approx(0.252, abs=5e-4)
    assert mfu("absorbed") == pytest.approx(0.292, abs=5e-4)


def test_decode_mfu_arithmetic() -> None:
    """22.3k output tokens/s on a node of 8 H100, DeepSeek-V3, context 2,000 tokens."""
    llm, peak = load_llm("deepseek-v3"), load_gpu("h100-sxm").flop_per_s("fp8")
    mfu = float(22_300 / 8 * llm.decode_flops(2000) / peak)
    assert round(mfu, 2) == default_efficiencies().decode_mfu == 0.15


def test_h20_alternatives_in_the_notes() -> None:
    llm, peak = load_llm("deepseek-v3"), load_gpu("h20-sxm").flop_per_s("fp8")
    form = replace(llm, prefill_attention_form="decompressed")
    prefill = 16_500 / 8 * form.prefill_flops(0, 4096).total / 4096 / peak
    decode = 5_700 / 8 * llm.decode_flops(4096) / peak
    assert f"{prefill:.2f}" in (efficiency_entries()["prefill_mfu"].note or "")
    assert f"{decode:.2f}" in (efficiency_entries()["decode_mfu"].note or "")
