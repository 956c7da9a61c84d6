"""How a client proves who it is. No import of nats-py: this is configuration."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

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
