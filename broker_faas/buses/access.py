"""How a client proves who it is. No import of nats-py: this is configuration."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from ..errors import ConfigError
from ..tls import client_context


@dataclass(frozen=True, kw_only=True)
class Access:
    """How to prove who we are. Paths: `credentials` a NATS .creds file; `ca`, `cert`, `key` PEM files for TLS."""

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    credentials: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    inbox: str = "_INBOX"  # prefix of reply subjects: one a user, where users of one account must not read each other's

    def tls(self) -> ssl.SSLContext | None:
        if not (self.ca or self.cert):
            return None
        try:
            return client_context(self.ca, self.cert, self.key)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def check_credentials(self) -> None:
        """Raises ConfigError. nats-py would look for ever for what the file does not have."""
        if self.credentials is None:
            return
        if find_spec("nkeys") is None:
            raise ConfigError("a .creds file needs nkeys, which is not installed: pip install 'broker-faas[creds]'")
        from nkeys import from_seed

        file = Path(self.credentials)
        if not file.is_file():
            raise ConfigError(f"there is no file {file}; credentials is the path of a .creds file")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise ConfigError(f"{file}, the .creds file, cannot be read: {error.strerror}") from None
        seed = re.search(rb"BEGIN USER NKEY SEED-+\n(\w+)\n", content)
        if seed is None or not re.search(rb"BEGIN NATS USER JWT-+\n[\w.-]+\n", content):
            raise ConfigError(f"{file} is no .creds file, which has a user's JWT and the seed of its key, as `nsc generate creds` prints")
        try:
            from_seed(bytearray(seed[1])).wipe()
        except Exception as error:  # of base64, of lengths and of the package's own, and one of them says what the seed is
            raise ConfigError(f"{file}: its seed is no seed of a key ({type(error).__name__}); was all of it copied?") from None
