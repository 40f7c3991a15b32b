"""Who gets through, over real sockets, and what happens to open connections while certificates change."""

import asyncio
import re
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from medley.core.errors import InvalidInputError
from medley.core.identity import Role, dns_name
from medley.testing.certificates import SERVICE, Issuer, write_as_kubelet
from medley.tls.keyring import Keyring

ENGINE = dns_name(Role.ENGINE)


def keyring(folder):
    complaints = []
    ring = Keyring(folder, complaints.append)
    return ring, complaints


@asynccontextmanager
async def echo(ring):
    """Yield the port of a server that answers each line with the role that the client proved."""
    roles = []

    async def answer(reader, writer):
        role = ring.role(writer.get_extra_info("peercert"))
        roles.append(role)
        while line := await reader.readline():
            writer.write(f"{role} ".encode() + line)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=ring.server)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def open_line(port, context, name=ENGINE):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    return reader, writer


async def said(connection, text="hello"):
    reader, writer = connection
    writer.write(text.encode() + b"\n")
    return (await reader.readline()).decode().strip()


async def asked(port, context, name=ENGINE):
    """Return the answer to one line, or the kind of refusal. In TLS 1.3 a server refuses after the client is content."""
    try:
        connection = await open_line(port, context, name)
        try:
            return await said(connection) or "closed"
        finally:
            connection[1].close()
    except (ssl.SSLError, ConnectionError) as error:
        return type(error).__name__


@pytest.fixture
def issuer():
    return Issuer.new()


@pytest.mark.parametrize("role", list(Role))
async def test_each_role_of_the_service_proves_itself(issuer, tmp_path, role):
    server, _ = keyring(issuer.folder(tmp_path / "server", Role.ENGINE))
    client, _ = keyring(issuer.folder(tmp_path / "client", role))
    async with echo(server) as port:
        assert await asked(port, client.client) == f"{role} hello"


async def test_a_stranger_gets_nothing(issuer, tmp_path):
    server, _ = keyring(issuer.folder(tmp_path / "server", Role.ENGINE))
    other_service = Issuer.new()
    now = datetime.now(UTC)
    expired = issuer.folder(tmp_path / "old", Role.ROUTER, issued=now - timedelta(minutes=50), life=timedelta(1 / 1440))
    mine = issuer.folder(tmp_path / "mine", Role.ROUTER)
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.load_verify_locations(mine / "ca.crt")
    # Another service's router that trusts us, and is not trusted by us.
    foreign = other_service.folder(tmp_path / "foreign", Role.ROUTER, trusted=(issuer,))
    old_protocol = keyring(mine)[0].client
    old_protocol.minimum_version = ssl.TLSVersion.TLSv1_2
    old_protocol.maximum_version = ssl.TLSVersion.TLSv1_2
    async with echo(server) as port:
        refused = ("SSLError", "ConnectionResetError", "closed")
        assert await asked(port, nobody) in refused
        assert await asked(port, keyring(foreign)[0].client) in refused
        assert await asked(port, keyring(expired)[0].client) in refused
        assert await asked(port, old_protocol) in refused
        assert await asked(port, keyring(mine)[0].client) == "router hello"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert b"hello" not in await reader.read()
        writer.close()


async def test_clients_accept_no_server_but_the_role_they_want_of_their_own_service(issuer, tmp_path):
    client, _ = keyring(issuer.folder(tmp_path / "client", Role.ROUTER))
    router, _ = keyring(issuer.folder(tmp_path / "router", Role.ROUTER))
    foreign, _ = keyring(Issuer.new().folder(tmp_path / "foreign", Role.ENGINE, trusted=(issuer,)))
    for server in (router, foreign):
        async with echo(server) as port:
            assert await asked(port, client.client) == "SSLCertVerificationError"


async def test_a_service_that_shares_the_authority_is_still_another_service(issuer, tmp_path):
    server, _ = keyring(issuer.folder(tmp_path / "server", Role.ENGINE))
    client, _ = keyring(issuer.folder(tmp_path / "client", Role.ROUTER, service="models/other"))
    async with echo(server) as port:
        assert await asked(port, client.client) == "None hello"


async def test_open_connections_live_through_a_change_of_authority_and_new_ones_follow_it(issuer, tmp_path):
    successor = Issuer.new()
    server, complaints = keyring(issuer.folder(tmp_path / "server", Role.ENGINE))
    client, _ = keyring(issuer.folder(tmp_path / "client", Role.ROUTER))
    outlived = keyring(issuer.folder(tmp_path / "outlived", Role.ROUTER))[0].client
    async with echo(server) as port:
        connection = await open_line(port, client.client)
        for step in ("both trusted", "successor issues", "predecessor dropped"):
            for name, role in (("server", Role.ENGINE), ("client", Role.ROUTER)):
                if step == "both trusted":
                    issuer.folder(tmp_path / name, role, trusted=(successor,))
                elif step == "successor issues":
                    successor.folder(tmp_path / name, role, trusted=(issuer,))
                else:
                    successor.folder(tmp_path / name, role)
                # Between the two writes one side is ahead: kubelets are not in step.
                assert await asked(port, client.client) == "router hello"
                assert await said(connection, step) == f"router {step}"
        assert await asked(port, outlived) != "router hello"
        connection[1].close()
    assert complaints == []


async def test_files_that_do_not_fit_are_complained_of_once_and_the_last_good_ones_stay(issuer, tmp_path):
    server, complaints = keyring(issuer.folder(tmp_path / "server", Role.ENGINE))
    client, _ = keyring(issuer.folder(tmp_path / "client", Role.ROUTER))
    write_as_kubelet(tmp_path / "server", {"ca.crt": "", "tls.crt": "", "tls.key": "", "service": SERVICE})
    async with echo(server) as port:
        assert [await asked(port, client.client) for _ in range(3)] == ["router hello"] * 3
        assert len(complaints) == 1
        assert complaints[0].startswith(f"reading {tmp_path / 'server'}: ")
        issuer.folder(tmp_path / "server", Role.ENGINE)
        assert await asked(port, client.client) == "router hello"
    assert len(complaints) == 1


async def test_a_client_without_a_server_name_meets_the_newest_files_too(issuer, tmp_path):
    server, _ = keyring(issuer.folder(tmp_path / "server", Role.ENGINE))
    successor = Issuer.new()
    successor.folder(tmp_path / "server", Role.ENGINE)
    client, _ = keyring(successor.folder(tmp_path / "client", Role.ROUTER))
    context = client.client
    context.check_hostname = False
    async with echo(server) as port:
        assert await asked(port, context, name="") == "router hello"


def test_no_files_is_a_fault_of_the_environment(tmp_path):
    expected = "expected ca.crt, tls.crt, tls.key, service of one role of the service"
    with pytest.raises(InvalidInputError, match=f"MEDLEY_TLS_DIR: reading .*; {re.escape(expected)}"):
        Keyring(tmp_path, print)
