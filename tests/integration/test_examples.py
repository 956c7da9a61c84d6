"""Each example does what its README says, as a reader types it in a copy of its folder, against real servers."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from pathlib import Path
from socket import socket

import nats
import pytest
import pytest_asyncio

from ..markdown import ROOT, blocks
from ..rabbitmq_server import Rabbit
from ..systems.kafka import admin
from ..typist import Typist

EXAMPLES = ROOT / "examples"
COMPOSE = EXAMPLES / "compose.yaml"
READMES = sorted(EXAMPLES.rglob("README.md"))
pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("nats_binary")]


async def test_orders_of_kafka_are_checked_for_fraud(kafka: str, tmp_path: Path) -> None:
    async with admin(kafka) as client:
        left = {"example-orders", "example-held"} & {*await client.list_topics()}  # on somebody's own server
        await client.delete_topics([*left])  # and the group's offsets of them
    typed("kafka", tmp_path, KAFKA_BOOTSTRAP_SERVERS=kafka)


async def test_the_mails_of_a_queue_of_rabbitmq_are_sent(rabbitmq: Rabbit, tmp_path: Path) -> None:
    async with rabbitmq.channel() as channel:
        await channel.queue_delete("example-mails")
    typed("rabbitmq", tmp_path, AMQP_URL=rabbitmq.url)


def test_temperatures_of_another_nats_are_watched(devices_url: str, tmp_path: Path) -> None:
    typed("nats", tmp_path, DEVICES_NATS_URL=devices_url)


def test_a_schedule_sets_off_a_report(tmp_path: Path) -> None:
    typed("cron", tmp_path)


def test_a_webhook_books_what_is_signed_once(tmp_path: Path) -> None:
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for file in (folder := copied("http", tmp_path)).glob("*.*"):
        file.write_text(file.read_text().replace("8080", port))
    with Typist(folder, {"WEBHOOK_SECRET": "s"}).at_work() as typist:
        typist.type(blocks(folder / "README.md"))
        said = typist.printed(0)

    assert said.count("payment pay-2: 12.50 EUR booked") == 1, said
    assert "pay-3" not in said


@pytest.mark.parametrize("readme", READMES, ids=lambda readme: readme.parent.name)
def test_a_readme_is_short_and_its_links_lead_somewhere(readme: Path) -> None:
    text = readme.read_text()

    assert len(text.splitlines()) <= 40
    assert [] == [link for link in re.findall(r"\]\((?!https?:)([^)#]+)", text) if not (readme.parent / link).exists()]


def test_every_example_is_in_the_list() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/faas.toml")}

    assert folders == set(re.findall(r"\]\((\w+)\)", (EXAMPLES / "README.md").read_text()))


# --- compose.yaml -------------------------------------------------------------------------------------------


def test_compose_listens_on_loopback_pins_its_images_and_checks_their_health() -> None:
    services = compose()

    assert {"kafka", "rabbitmq", "nats"} == services.keys()
    for service in services.values():
        assert re.search(r"^    image: \S+:\d+\.\d+\.\d+\S*( |$)", service, re.MULTILINE), service
        assert "    healthcheck:\n      test: [" in service
        ports = re.search(r"^    ports:\n((?:      - .*\n)+)", service, re.MULTILINE)
        assert ports, service
        assert all(re.fullmatch(r'      - "127\.0\.0\.1:(\d+):\1"', port) for port in ports[1].splitlines()), service


@pytest.mark.parametrize("name", ["kafka", "rabbitmq", "nats"])
def test_what_a_readme_exports_is_what_compose_listens_at(name: str) -> None:
    [exported] = [line for block in blocks(EXAMPLES / name / "README.md") for line in block.text.splitlines() if "export " in line]
    variable, _, value = exported.removeprefix("export ").partition("=")
    service = compose()[name]

    assert f"# {variable}={value}\n" in service
    assert f'- "{re.sub(r"^.*[@/]", "", value)}:' in service
    assert f"up --wait {name}`" in (EXAMPLES / name / "README.md").read_text()
    assert f"${{{variable}}}" in strings((tomllib.loads((EXAMPLES / name / "faas.toml").read_text()))["connector"])


def compose() -> dict[str, str]:
    """The text of each service: two spaces deep, as it is written here."""
    text = COMPOSE.read_text().partition("\nservices:\n")[2]
    return {match[1]: match[0] for match in re.finditer(r"(?m)^  (\w+):.*\n(?:(?:    .*)?\n)*", text)}


def strings(connectors: Iterable[dict[str, object]]) -> list[object]:
    return [value for connector in connectors for value in connector.values() if isinstance(value, str)]


# --- a reader's desk ----------------------------------------------------------------------------------------


def copied(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns(".faas", "__pycache__")))


def typed(name: str, tmp_path: Path, **environ: str) -> None:
    folder = copied(name, tmp_path)
    with Typist(folder, environ).at_work() as typist:
        typist.type(blocks(folder / "README.md"))


@pytest_asyncio.fixture
async def devices_url(bus_url: str) -> AsyncIterator[str]:
    """A NATS that is not the bus: an empty account on the shared server."""
    client = await nats.connect(bus_url)
    assert [] == await client.jetstream().streams_info()
    yield bus_url
    await client.close()
