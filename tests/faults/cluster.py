"""Three nats-servers that are one bus, each with a disk and a network namespace of its own.

    10.0.0.254   producers and workers: the run's own namespace, and the bridge in it
    10.0.0.1-3   the nodes n1, n2, n3: clients on 4222, routes on 6222, monitoring on 8222

A node is cut off from other nodes by nft rules in its own namespace; whoever is no node still reaches it.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import signal
from collections.abc import Sequence
from pathlib import Path

from broker_faas.buses.nats import NatsBus
from broker_faas.embedded import MAX_PAYLOAD, wheel_binary
from broker_faas.errors import FaasError

from ..helpers import eventually
from . import network
from .disk import Disk, call
from .process import Process
from .scenario import Scenario

BRIDGE = "faults0"
HERE = "10.0.0.254"
CLIENTS, ROUTES, MONITOR = 4222, 6222, 8222


class Node:
    """server: its process; its pid is nats-server's own. address: without a port."""

    def __init__(self, number: int, folder: Path, scenario: Scenario) -> None:
        self.name = f"n{number}"
        self.address = f"10.0.0.{number}"
        self.disk = Disk(folder / f"disk-{self.name}", folder, scenario.disk, scenario.disk_bytes)
        self.netns = f"/run/netns/{self.name}"
        config = self.disk.place / "nats.conf"
        command = ["nsenter", f"--net={self.netns}", str(wheel_binary()), "-c", str(config)]
        self.server = Process(self.name, command, {}, folder, folder / f"{self.name}.log", self._ready)

    async def _ready(self) -> None:
        await eventually(self.healthy)

    async def healthy(self) -> bool:
        """Whether it has caught up with its streams and consumers, and knows a leader of each."""
        reader, writer = await asyncio.open_connection(self.address, MONITOR)
        try:
            writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
            async with asyncio.timeout(3):
                return b" 200 " in await reader.readline()
        except TimeoutError:
            return False
        finally:
            writer.close()

    def cut_off(self, others: Sequence[Node]) -> None:
        """No packet between it and these nodes, until join()."""
        self.join()
        addresses = "{ " + ", ".join(other.address for other in others) + " }"
        self._nft("add", "table", *network.TABLE)
        for hook, side in (("input", "saddr"), ("output", "daddr")):
            self._nft("add", "chain", *network.TABLE, hook, f"{{ type filter hook {hook} priority 0; }}")
            self._nft("add", "rule", *network.TABLE, hook, "ip", side, addresses, "counter", "drop")

    def join(self) -> None:
        self._nft("add", "table", *network.TABLE)  # so that there is one
        self._nft("delete", "table", *network.TABLE)

    def dropped(self) -> int:
        """Packets that cut_off() has stopped so far."""
        return sum(int(n) for n in re.findall(r"counter packets (\d+)", self._nft("list", "table", *network.TABLE)))

    def _nft(self, *arguments: str) -> str:
        return call("nsenter", f"--net={self.netns}", "nft", *arguments)


class Cluster:
    """url: of all nodes, with credentials, separated by commas."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.nodes = [Node(number, folder, scenario) for number in range(1, scenario.nodes + 1)]
        self._password = secrets.token_hex(16)
        self._store = scenario.max_bytes

    @property
    def url(self) -> str:
        return ",".join(f"nats://faas:{self._password}@{node.address}:{CLIENTS}" for node in self.nodes)

    @property
    def servers(self) -> list[Process]:
        return [node.server for node in self.nodes]

    def make(self) -> None:
        """Networks, disks and configurations."""
        call("ip", "link", "add", BRIDGE, "type", "bridge")
        call("ip", "addr", "add", f"{HERE}/24", "dev", BRIDGE)
        call("ip", "link", "set", BRIDGE, "up")
        Path("/run/netns").mkdir(exist_ok=True)
        call("mount", "-t", "tmpfs", "tmpfs", "/run/netns")  # names of this run alone
        for node in self.nodes:
            call("ip", "netns", "add", node.name)
            call("ip", "link", "add", f"to-{node.name}", "type", "veth", "peer", "name", "eth0", "netns", node.name)
            call("ip", "link", "set", f"to-{node.name}", "master", BRIDGE, "up")
            call("ip", "-n", node.name, "addr", "add", f"{node.address}/24", "dev", "eth0")
            call("ip", "-n", node.name, "link", "set", "eth0", "up")
            call("ip", "-n", node.name, "link", "set", "lo", "up")
            node.disk.make()
            (node.disk.place / "nats.conf").write_text(self._configuration(node))
            call("sync", "-f", str(node.disk.place))

    async def leader(self, stream: str = "events") -> Node:
        """Who leads this stream now, as the bus says."""

        async def asked() -> Node | None:
            try:
                async with NatsBus(self.url, manage=False).open() as bus:
                    leads = (await bus.api(f"STREAM.INFO.{stream}"))["cluster"].get("leader")
            except FaasError:
                return None
            return next((node for node in self.nodes if node.name == leads), None)

        found: Node = await eventually(asked, 30)
        return found

    async def healthy(self) -> None:
        for node in self.nodes:
            await eventually(node.healthy, 60)

    def _configuration(self, node: Node) -> str:
        """As broker_faas.embedded writes it, and a cluster."""
        settings = {
            "server_name": node.name,
            "listen": f"{node.address}:{CLIENTS}",
            "http": f"{node.address}:{MONITOR}",
            "max_payload": MAX_PAYLOAD,
            "max_pending": 64 << 20,
            "write_deadline": "5s",
            "ping_interval": "20s",
            "ping_max": 2,
            "lame_duck_duration": "30s",
            "lame_duck_grace_period": "1s",
            "jetstream": {
                "store_dir": str(node.disk.place / "js"),
                "sync_interval": "always",
                "max_memory_store": 64 << 20,
                "max_file_store": self._store,
            },
            "cluster": {
                "name": "faults",
                "listen": f"{node.address}:{ROUTES}",
                "routes": [f"nats://{other.address}:{ROUTES}" for other in self.nodes if other is not node],
            },
            "accounts": {"FAAS": {"jetstream": "enabled", "users": [{"user": "faas", "password": self._password}]}},
        }
        return json.dumps(settings, indent=2) + "\n"


async def end(node: Node, *, lame_duck: bool) -> int:
    """Its exit status. lame_duck: it first hands over what it leads and sends its clients away."""
    return await node.server.end(signal.SIGUSR2 if lame_duck else signal.SIGTERM, 60)
