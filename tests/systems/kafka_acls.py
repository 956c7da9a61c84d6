"""Rights in Kafka, for tests: aiokafka has no request that gives them."""

from __future__ import annotations

from typing import Any

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String

from .kafka import admin


async def allow(servers: str, user: str, topic: str, *operations: str) -> None:
    """As `kafka-acls.sh --add`: operations: write, describe."""
    numbers = {"write": 4, "describe": 8}
    async with admin(servers) as client:
        made = [(2, topic, 3, f"User:{user}", "*", numbers[operation], 3) for operation in operations]
        answer = await client._send_request(_CreateAcls(*made))
        assert [code for code, _ in answer.results] == [0] * len(made), answer


class _CreateAclsResponse(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 30, 1
    SCHEMA = Schema(("throttle_time_ms", Int32), ("results", Array(("error_code", Int16), ("error_message", String("utf-8")))))


class _CreateAcls_v1(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION = 30, 1
    RESPONSE_TYPE = _CreateAclsResponse
    SCHEMA = Schema(
        (
            "creations",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                ("resource_pattern_type", Int8),
                ("principal", String("utf-8")),
                ("host", String("utf-8")),
                ("operation", Int8),
                ("permission_type", Int8),
            ),
        )
    )


class _CreateAcls(Request[_CreateAcls_v1]):  # type: ignore[misc]
    API_KEY = 30

    def __init__(self, *creations: tuple[Any, ...]) -> None:
        self._creations = creations

    def build(self, request_struct_class: type[_CreateAcls_v1]) -> _CreateAcls_v1:
        return request_struct_class(list(self._creations))
