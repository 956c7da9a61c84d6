"""Posts payments, as the provider does: signed, one of them again as if the answer had been lost, and one that somebody forged."""

import hmac
import json
import os
from pathlib import Path
from urllib.request import Request, urlopen

URL = "http://127.0.0.1:8080/topics/payments.reported"
KEY = Path("provider.key").read_text().strip()
SECRET = os.environ["WEBHOOK_SECRET"]


def post(id: str, cents: int, secret: str = SECRET) -> None:
    body = json.dumps({"id": id, "cents": cents}).encode()
    headers = {
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": id,
        "ce-source": "https://pay.example.com",
        "ce-type": "payment",
        "ce-signature": hmac.new(secret.encode(), body, "sha256").hexdigest(),
    }
    with urlopen(Request(URL, body, headers), timeout=10) as response:
        said = json.load(response)
    print(f"{id}: {response.status}, events {said['events']}, duplicates {said['duplicates']}")


post("pay-1", 4990)
post("pay-2", 1250)
post("pay-2", 1250)
post("pay-3", 99999, secret="guessed")
