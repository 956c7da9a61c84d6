"""Which cluster, and how to get in: the options that a connector and a sink share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from ...options import loopback


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    servers: str
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        for server in self.servers.split(","):
            host, colon, port = server.strip().rpartition(":")
            if not (host and colon and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536) or "/" in host or "@" in host:
                raise ValueError("servers must look like kafka-1:9092,kafka-2:9092")
            host = host.strip("[]")
            if not self.insecure and not loopback(host) and not self.security_protocol.endswith("SSL"):
                raise ValueError(
                    f'servers names another machine ({host}): it needs TLS, like security_protocol = "SASL_SSL". '
                    "In a network where nobody else listens, say insecure = true."
                )
        if self.security_protocol.startswith("SASL") != (self.username is not None and self.password is not None):
            raise ValueError(
                'username and password must be given with security_protocol = "SASL_SSL" or "SASL_PLAINTEXT", and only with them'
            )
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file must be given together")

    @property
    def user(self) -> str:
        """For messages."""
        return self.username or "this user"
