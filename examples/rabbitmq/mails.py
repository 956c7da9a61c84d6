"""Sends the mails of a work queue. A mailbox that is busy is tried again; an address that is none is a dead letter."""

import os
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from broker_faas import Context, Reject, Retry, function


@dataclass
class Mail:
    invoice: int
    to: str


class Busy(Exception):
    pass


@function(on="mails.wanted", concurrency=4, timeout=20)
def send(mail: Mail, ctx: Context) -> None:
    message = EmailMessage()
    message["To"], message["Subject"] = mail.to, f"Invoice {mail.invoice}"
    message["Message-ID"] = f"<invoice-{mail.invoice}@shop.example>"  # the same when it comes twice
    try:
        deliver(message, ctx.attempt)
    except Busy:
        raise Retry(after=2) from None  # the queue behind it goes on meanwhile
    print(f"invoice {mail.invoice} sent to {mail.to}")


def deliver(message: EmailMessage, attempt: int) -> None:
    """Into a folder. With a server: smtplib.SMTP("smtp.example.com").send_message(message)."""
    to = str(message["To"])
    if "@" not in to:
        raise Reject(f"{to!r} is no address")
    if to.startswith("busy") and attempt == 1:
        raise Busy
    outbox = Path(os.environ["OUTBOX"])
    outbox.mkdir(exist_ok=True)
    (outbox / f"{message['Message-ID'].strip('<>')}.eml").write_bytes(bytes(message))
