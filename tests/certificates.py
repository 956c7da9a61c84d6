"""A private authority and what it has signed: PEM files of a test's own, made by openssl."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PASSWORD = "pa55-of-shop"  # of the user `shop`, and of locked_key

_EXTENSIONS = """\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
subjectAltName = DNS:localhost
authorityKeyIdentifier = keyid
[client]
extendedKeyUsage = clientAuth
authorityKeyIdentifier = keyid
"""


class Certificates:
    """Paths. server: of `localhost`, and not of 127.0.0.1, which is the wrong name. client: of the user `shop`. strangers: of nobody's
    trust, for clients, too. locked_key: the client's, with a password."""

    def __init__(self, folder: Path) -> None:
        if not shutil.which("openssl"):
            missing = "there is no openssl to make certificates: apt-get install openssl"
            if os.environ.get("CI"):
                pytest.fail(missing, pytrace=False)
            pytest.skip(f"NOT TESTED: {missing}")
        self._folder = folder
        folder.mkdir(exist_ok=True)
        (folder / "openssl.cnf").write_text(_EXTENSIONS)
        self.ca, ca_key = self._signed("authority", "a private authority")
        self.server, self.server_key = self._signed("server", "localhost", by=(self.ca, ca_key))
        self.client, self.client_key = self._signed("client", "shop", by=(self.ca, ca_key))
        self.stranger, self.stranger_key = self._signed("authority", "a stranger", file="stranger")
        self.locked_key = str(folder / "locked.key")
        self._openssl("ec", "-in", self.client_key, "-aes128", "-passout", f"pass:{PASSWORD}", "-out", self.locked_key)

    def _signed(self, kind: str, name: str, file: str = "", by: tuple[str, str] | None = None) -> tuple[str, str]:
        """(certificate, key)."""
        cert, key = (str(self._folder / f"{file or kind}.{ending}") for ending in ("pem", "key"))
        signer = ["-CA", by[0], "-CAkey", by[1]] if by else []
        made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-keyout", key, "-out", cert, "-days", "2"]
        self._openssl("req", "-x509", "-config", "openssl.cnf", "-extensions", kind, "-subj", f"/CN={name}", *made, *signer)
        return cert, key

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)
