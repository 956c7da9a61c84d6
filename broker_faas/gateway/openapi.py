"""The gateway's API for programs (OpenAPI 3.1), and for people: a page without scripts."""

from __future__ import annotations

from html import escape
from typing import Any

from ..topics import MAX_TOPIC

_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def _problems(**told: str) -> dict[str, Any]:
    return {status[1:]: {"description": description, "content": _PROBLEM} for status, description in told.items()}


_TOPIC = {
    "name": "topic",
    "in": "path",
    "required": True,
    "description": "Dot-separated words of letters, digits, '_' and '-'.",
    "schema": {"type": "string", "maxLength": MAX_TOPIC, "pattern": r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"},
}
_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "The same key again within 2 minutes, to the same topic, stores nothing.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}
_EVENT = {"type": "object", "required": ["specversion", "id", "source", "type"]}

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "broker_faas gateway", "version": "1", "description": "CloudEvents in: what is answered with 200 is on disk."},
    "security": [{"key": []}, {}],
    "paths": {
        "/topics/{topic}": {
            "parameters": [_TOPIC],
            "post": {
                "summary": "Publish an event, or a batch.",
                "description": "CloudEvents 1.0 over HTTP in binary, structured or batch mode. Any other body becomes the data of "
                "an event: its type is the topic, its id the Idempotency-Key, or drawn.",
                "parameters": [_KEY],
                "requestBody": {
                    "content": {
                        "application/cloudevents+json": {"schema": _EVENT},
                        "application/cloudevents-batch+json": {"schema": {"type": "array", "items": _EVENT}},
                        "*/*": {"schema": {}},
                    }
                },
                "responses": {
                    "200": {
                        "description": "All are on disk.",
                        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Stored"}}},
                    }
                }
                | _problems(
                    _400="This event can never be stored: the detail names the attribute and the rule.",
                    _401="A key is needed.",
                    _403="The key does not cover this topic.",
                    _408="The body came too slowly.",
                    _411="Neither Content-Length nor chunks.",
                    _413="Too large.",
                    _415="Another CloudEvents format than JSON, or a Content-Encoding.",
                    _429="Too much at once: come again after Retry-After seconds.",
                    _503="The bus is away or full. What was sent may or may not be stored: send it again with the same id.",
                ),
            },
            "options": {
                "summary": "The handshake of CloudEvents webhooks.",
                "responses": {"200": {"description": "The sender may send."}, "204": {"description": "No sender asked."}},
            },
        },
        "/livez": {"get": {"summary": "The process is alive.", "security": [], "responses": {"200": {"description": "It is."}}}},
        "/readyz": {
            "get": {
                "summary": "Events can be taken.",
                "security": [],
                "responses": {"200": {"description": "They can."}} | _problems(_503="The bus is away."),
            }
        },
    },
    "components": {
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        "schemas": {
            "Problem": {
                "type": "object",
                "properties": {"title": {"type": "string"}, "status": {"type": "integer"}, "detail": {"type": "string"}},
            },
            "Stored": {
                "type": "object",
                "properties": {
                    "topic": {"type": "string"},
                    "stream": {"type": "string"},
                    "events": {"type": "integer"},
                    "duplicates": {"type": "integer", "description": "So many of them the bus had already."},
                    "ids": {"type": "array", "items": {"type": "string"}},
                    "sequences": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "description": "Their places in the stream, in the order of the ids; of a duplicate, the place of the first.",
                    },
                },
            },
        },
    },
}

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body {{ font: 16px/1.5 sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em }} td {{ padding: 0 1em 0 0 }}</style>
<h1>{title}</h1><p>{description} The same for programs: <a href="/openapi.json">openapi.json</a>.</p>
{sections}
"""


def page() -> bytes:
    info = DOCUMENT["info"]
    sections = [
        _section(method, path, operation)
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
        if method != "parameters"
    ]
    return _PAGE.format(title=escape(info["title"]), description=escape(info["description"]), sections="\n".join(sections)).encode()


def _section(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{status}<td>{escape(said['description'])}" for status, said in operation["responses"].items())
    about = escape(f"{operation['summary']} {operation.get('description', '')}")
    return f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{about}</p><table>{rows}</table>"
