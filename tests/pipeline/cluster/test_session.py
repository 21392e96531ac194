"""An address of a cluster is tried before Ray is, which would do so for more than ten minutes."""

from __future__ import annotations

import socket

import pytest

from patchsieve.pipeline.cluster.session import check_address
from patchsieve.pipeline.errors import PatchsieveError


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "[::1]:9", "127.0.0.1:99999"])
def test_an_address_that_leads_nowhere_is_told_at_once(address: str) -> None:
    with pytest.raises(PatchsieveError, match="no cluster answers there") as told:
        check_address(address)
    assert address in str(told.value)


def test_what_answers_and_what_is_no_address_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(f"127.0.0.1:{server.getsockname()[1]}")
    for name in ("", "auto", "local"):
        check_address(name)
