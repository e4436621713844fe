"""The command: what keeps it from serving is said in one sentence."""

from __future__ import annotations

import importlib.util
import socket

import pytest

from app.dashboard.serve import check
from dualpath_model.errors import InputError


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"cannot be listened on .* choose another"):
            check("127.0.0.1", taken.getsockname()[1])


@pytest.mark.parametrize("address", ["example", "256.1.1.1", "", "::zz"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(InputError, match="is no IP address"):
        check(address, 8501)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(InputError, match="cannot be listened on"):
        check("192.0.2.1", 8501)


def test_without_streamlit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'dualpath-model\[dashboard\]'"):
        check("127.0.0.1", 8501)
