"""How a client proves who it is. No import of nats-py: this is configuration."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

from ..errors import ConfigError


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
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert:
                context.load_cert_chain(self.cert, self.key)
        except OSError as e:
            raise ConfigError(f"TLS files of the bus cannot be used (ca={self.ca}, cert={self.cert}, key={self.key}): {e}") from e
        return context
