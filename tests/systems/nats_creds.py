"""A nats-server that knows its users by signed credentials, as with nsc or a hosted NATS: an operator, accounts, and .creds files."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nkeys

from benchmarks import procs
from broker_faas.embedded import wheel_binary
from tests.helpers import eventually
from tests.kafka_server import free_ports

UNLIMITED = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1)
JETSTREAM = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)


class Operator:
    """Signs accounts, of which `system` is the server's own."""

    def __init__(self) -> None:
        self._keys = _pair(nkeys.PREFIX_BYTE_OPERATOR)
        self.system = Account(self, "system", {})
        self.shop = Account(self, "shop", JETSTREAM)
        self.token = signed(self._keys, _name(self._keys), "operator", {"type": "operator", "system_account": self.system.id})

    def sign(self, account: str, name: str, limits: dict[str, int]) -> str:
        claims = {"type": "account", "limits": UNLIMITED | {"wildcards": True} | limits}
        return signed(self._keys, account, name, claims)


class Account:
    def __init__(self, operator: Operator, name: str, limits: dict[str, int]) -> None:
        self._keys = _pair(nkeys.PREFIX_BYTE_ACCOUNT)
        self.id = _name(self._keys)
        self.token = operator.sign(self.id, name, limits)

    def credentials(self, file: Path, *, expires: int = 0) -> str:
        """Writes the .creds file of a new user; its path. expires: unix seconds; 0: never."""
        user = _pair(nkeys.PREFIX_BYTE_USER)
        token = signed(self._keys, _name(user), "user", {"type": "user", "subs": -1, "data": -1, "payload": -1}, expires)
        file.write_text(
            f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
        )
        return str(file)


@asynccontextmanager
async def nats_with(operator: Operator, folder: Path) -> AsyncIterator[str]:
    """Its url. It takes users of this operator alone."""
    folder.mkdir()
    [port] = free_ports(1)
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "jetstream": {"store_dir": str(folder / "js")},
        "operator": operator.token,
        "system_account": operator.system.id,
        "resolver": "MEMORY",
        "resolver_preload": {account.id: account.token for account in (operator.system, operator.shop)},
    }
    (folder / "nats.conf").write_text(json.dumps(settings))
    async with procs.running([str(wheel_binary()), "-c", str(folder / "nats.conf")], os.environ, folder / "log"):
        await eventually(lambda: "Server is ready" in (folder / "log").read_text(), 30)
        yield f"nats://127.0.0.1:{port}"


def signed(by: nkeys.KeyPair, subject: str, name: str, claims: dict[str, Any], expires: int = 0) -> str:
    """A JWT as NATS makes them (ADR-14): its id is a digest of what it says."""
    body: dict[str, Any] = {"iat": int(time.time()), "iss": _name(by), "sub": subject, "name": name, "nats": {"version": 2} | claims}
    if expires:
        body["exp"] = expires
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).rstrip(b"=").decode()
    parts = [_packed(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)]
    return ".".join([*parts, _packed(by.sign(".".join(parts).encode()))])


def _pair(prefix: int) -> nkeys.KeyPair:
    return nkeys.from_seed(nkeys.encode_seed(secrets.token_bytes(32), prefix))


def _name(keys: nkeys.KeyPair) -> str:
    return str(keys.public_key.decode())


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
