"""Addresses that cannot be served."""

import socket

import pytest

from gateway.serving_places import StartFailed, listen


def test_a_host_without_an_address_is_told_in_the_resolvers_words() -> None:
    with pytest.raises(StartFailed, match=r"cannot listen on no\.such\.host\.invalid port 0 \((?!Unknown error)"):
        listen("no.such.host.invalid", 0)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here: serving both families DID NOT RUN")
def test_every_address_is_of_both_families() -> None:
    with listen("::", 0) as listener:
        port = listener.getsockname()[1]
        for host in ("::1", "127.0.0.1"):
            with socket.create_connection((host, port), timeout=5):
                pass
