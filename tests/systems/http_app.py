"""A receiver of webhooks, as a process of its own: `python -m tests.systems.http_app FOLDER PORT [CERT KEY CLIENTS_CA]`.

FOLDER/received.jsonl   a line for each request, written before it is answered
FOLDER/answered         the last part of the path of each, a line, written after it was answered
FOLDER/behaviour.json   what is answered, by the last part of the path: {"status": 503, "headers": {}, "body": "", "delay": 1.0,
                        "hang": true, "times": 1}; delay: seconds; times: so often, 204 afterwards. Without any: 204.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


class Receiver:
    def __init__(self, folder: Path) -> None:
        self._log = (folder / "received.jsonl").open("ab")
        self._answered = (folder / "answered").open("ab", buffering=0)
        self._behaviour = folder / "behaviour.json"
        self._told: Counter[str] = Counter()
        self._in_hand: Counter[str] = Counter()

    async def answer(self, request: Request) -> Response:
        target = request.url.path.rpartition("/")[2]
        key = request.headers.get("ce-partitionkey", "")
        self._in_hand[""] += 1
        self._in_hand[key] += bool(key)
        try:
            body = await request.body()
            seen = {
                "path": request.scope["raw_path"].decode(),
                "query": request.scope["query_string"].decode(),
                "headers": [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers.raw],
                "body": b64encode(body).decode(),
                "client": request.client and request.client.port,
                "in_hand": self._in_hand[""],
                "in_hand_of_key": self._in_hand[key],
            }
            self._log.write(json.dumps(seen).encode() + b"\n")
            self._log.flush()
            await asyncio.sleep(0)
            return await self._told_to(target)
        finally:
            self._in_hand[""] -= 1
            self._in_hand[key] -= bool(key)

    async def _told_to(self, target: str) -> Response:
        how: dict[str, Any] = json.loads(self._behaviour.read_bytes()).get(target, {})
        self._told[target] += 1
        if self._told[target] > how.get("times", 1 << 30):
            how = {}
        if how.get("hang"):
            await asyncio.Event().wait()
        await asyncio.sleep(how.get("delay", 0))
        return Response(how.get("body", ""), how.get("status", 204), how.get("headers"), background=BackgroundTask(self._count, target))

    async def _count(self, target: str) -> None:
        self._answered.write(target.encode() + b"\n")


def main(folder: Path, port: int, *tls: str) -> None:
    app = Starlette(routes=[Route("/{path:path}", Receiver(folder).answer, methods=["POST"])])
    config = uvicorn.Config(app, port=port, log_level="error", lifespan="off", timeout_keep_alive=60)
    config.load()
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls[0], tls[1])
        if tls[2:]:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(tls[2])
        config.ssl = context
    uvicorn.Server(config).run()


if __name__ == "__main__":
    os.umask(0o077)
    main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
