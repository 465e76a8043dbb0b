"""Addresses that cannot be served."""

import pytest

from gateway.serving_places import StartFailed, listen


def test_a_host_without_an_address_is_told_in_the_resolvers_words() -> None:
    with pytest.raises(StartFailed, match=r"cannot listen on no\.such\.host\.invalid port 0 \((?!Unknown error)"):
        listen("no.such.host.invalid", 0)
