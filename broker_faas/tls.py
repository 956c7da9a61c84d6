"""TLS as a client: the files of options, and what a handshake that failed says of the server."""

from __future__ import annotations

import ssl


def client_context(ca: str | None = None, cert: str | None = None, key: str | None = None) -> ssl.SSLContext:
    """PEM files; without ca: the system's authorities. Raises ValueError that names the file."""
    try:
        for file in filter(None, (ca, cert, key)):
            open(file, "rb").close()  # ssl does not say which one is not there
        context = ssl.create_default_context(cafile=ca or None)
        if cert:
            context.load_cert_chain(cert, key, password=no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = ", ".join(filter(None, (ca, cert, key)))
        raise ValueError(f"the certificates cannot be read ({files}): {error}") from None
    return context


def no_password() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("the key has a password, and nobody is there to type it")


def refusal(error: BaseException | None, ca: str) -> str | None:
    """What is wrong with a server, as a handshake has found it: the same when coming again. None for any other error.

    ca: name of the option that says whom to trust.
    """
    match error:
        case ssl.SSLCertVerificationError():
            said = (getattr(error, "verify_message", "") or str(error)).rstrip(".")
            do = "connect by a name that it has" if "not valid for" in said else f"{ca} has to name who signed it"
            return f"its certificate is not trusted: {said}: {do}"
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "RECORD_LAYER_FAILURE"):
            return "it speaks no TLS at this port: use another one, or no TLS"
    return None
