"""A real Apache Kafka for tests: one broker or three in KRaft mode, on loopback. Its jars come from Maven Central, into .servers/."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from time import monotonic

from .certificates import PASSWORD, Certificates

POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>4.1.0</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
  <build><plugins><plugin>
    <groupId>org.apache.maven.plugins</groupId><artifactId>maven-dependency-plugin</artifactId><version>3.6.1</version>
  </plugin></plugins></build>
</project>
"""
SERVERS = Path(__file__).parents[1] / ".servers"
CLUSTER = "MkU3OEVBNTcwNTJENDM2Qg"


class Missing(Exception):
    """No Kafka can be had on this machine; the text says what would bring it."""


def jars() -> Path:
    """The folder of the server's jars; downloaded if this version of the pom has none. Raises Missing."""
    if not shutil.which("java"):
        raise Missing("there is no java: tools/test-servers, or apt-get install default-jre-headless maven")
    folder = SERVERS / f"kafka-{blake2b(POM.encode(), digest_size=6).hexdigest()}"
    if folder.exists():
        return folder
    if not shutil.which("mvn"):
        raise Missing("there is no mvn to download Kafka: tools/test-servers, or apt-get install maven")
    made = folder.with_name(f"{folder.name}.{os.getpid()}")
    made.mkdir(parents=True)
    try:
        (made / "pom.xml").write_text(POM)
        argv = ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={made}"]
        done = subprocess.run(argv, cwd=made, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise Missing(f"Kafka cannot be downloaded: {(done.stdout + done.stderr)[-500:]}")
        with suppress(OSError):  # somebody else was faster
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


class OwnKafka:
    """A broker to break: after kill() or stop(), start() brings it back with its data and port.

    controllers: ports of all brokers of the cluster, of which this one is the `node`th; without any it is alone.
    certificates: it listens for TLS, too. joining: seconds that a new group waits for more members, 3 with Kafka's own setting.
    """

    def __init__(
        self,
        folder: Path,
        node: int = 1,
        controllers: Sequence[int] = (),
        *,
        certificates: Certificates | None = None,
        joining: float = 0.0,
    ) -> None:
        self.node = node
        self._joining = joining
        self._folder = folder
        self._libs = jars()
        self._process: asyncio.subprocess.Process | None = None
        self._port, self._sasl, alone, self.ssl_port, self.sasl_ssl_port = free_ports(5)
        self._certificates = certificates
        self._controllers = controllers or [alone]

    @property
    def servers(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def sasl_servers(self) -> str:
        """The same broker for SASL_PLAINTEXT with PLAIN: users `shop`, who may do everything, and `clerk`, who may nothing that is not
        allowed to him. The password of both is `secret`."""
        return f"127.0.0.1:{self._sasl}"

    @property
    def command(self) -> list[str]:
        """Of the broker, in its folder; make() comes before it."""
        return self._argv("kafka.Kafka")

    async def make(self) -> None:
        """Its folder, if there is none."""
        if not self._folder.exists():
            self._folder.mkdir(parents=True)
            (self._folder / "server.properties").write_text(self._settings())
            alone = ["--standalone"] if len(self._controllers) == 1 else []
            users = [word for n in (256, 512) for word in ("-S", f"SCRAM-SHA-{n}=[name=shop,password={PASSWORD}]") if self._certificates]
            code = await (await self._java("kafka.tools.StorageTool", "format", *alone, *users, "-t", CLUSTER, "-c")).wait()
            if code:
                raise AssertionError(f"Kafka's folder cannot be made: {self._log()}")

    async def start(self) -> None:
        await self.make()
        self._process = await self._java("kafka.Kafka")
        started = monotonic()
        while monotonic() - started < 180:
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.close()
                return
            if self._process.returncode is not None:
                break
            await asyncio.sleep(0.05)
        raise AssertionError(f"Kafka does not listen: {self._log()}")

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(how)
        try:
            async with asyncio.timeout(30):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: its connections stay, and it says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    async def kill(self) -> None:
        await self.stop(signal.SIGKILL)

    def _argv(self, main: str, *words: str) -> list[str]:
        return ["java", "-Xmx512m", "-Xms128m", "-XX:TieredStopAtLevel=1", "-cp", f"{self._libs}/*", main, *words, "server.properties"]

    async def _java(self, main: str, *words: str) -> asyncio.subprocess.Process:
        with open(self._folder / "log", "ab") as log:
            return await asyncio.create_subprocess_exec(
                *self._argv(main, *words),
                cwd=self._folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _log(self) -> str:
        return (self._folder / "log").read_text()[-1500:]

    def _settings(self) -> str:
        listeners = (
            f"PLAINTEXT://127.0.0.1:{self._port},SASL://127.0.0.1:{self._sasl},CONTROLLER://127.0.0.1:{self._controllers[self.node - 1]}"
        )
        count = len(self._controllers)
        voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(self._controllers, 1))
        settings: dict[str, object] = {
            "process.roles": "broker,controller",
            "node.id": self.node,
            "controller.quorum.bootstrap.servers" if count == 1 else "controller.quorum.voters": voters.split("@")[1]
            if count == 1
            else voters,
            "broker.session.timeout.ms": 9000 if count == 1 else 4000,
            "broker.heartbeat.interval.ms": 1000,
            "listeners": listeners,
            "advertised.listeners": listeners,
            "inter.broker.listener.name": "PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": (
                'org.apache.kafka.common.security.plain.PlainLoginModule required user_shop="secret" user_clerk="secret";'
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:shop",
            "log.dirs": "./data",
            "offsets.topic.replication.factor": count,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": count,
            "transaction.state.log.min.isr": 1,
            "group.initial.rebalance.delay.ms": round(self._joining * 1000),
            "group.min.session.timeout.ms": 1000,
            "num.partitions": 4,
            "min.insync.replicas": min(2, count),
        }
        if self._certificates:
            settings |= self._tls(listeners, self._certificates)
        return "".join(f"{name}={value}\n" for name, value in settings.items())

    def _tls(self, listeners: str, certificates: Certificates) -> dict[str, object]:
        """ssl_port: who has a certificate of the authority's. sasl_ssl_port: `shop`, by SCRAM or PLAIN. Their host is localhost."""
        pair = self._folder / "server.pem"
        pair.write_text(Path(certificates.server_key).read_text() + Path(certificates.server).read_text())
        return {
            "listeners": f"{listeners},SSL://127.0.0.1:{self.ssl_port},SASL_SSL://127.0.0.1:{self.sasl_ssl_port}",
            "advertised.listeners": f"{listeners},SSL://localhost:{self.ssl_port},SASL_SSL://localhost:{self.sasl_ssl_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": pair,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": certificates.ca,
            "listener.name.ssl.ssl.client.auth": "required",
            "listener.name.sasl_ssl.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_shop="{PASSWORD}";'
            ),
            "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            "super.users": "User:ANONYMOUS;User:shop;User:CN=shop",
        }


@asynccontextmanager
async def running(folder: Path, *, certificates: Certificates | None = None, joining: float = 0.0) -> AsyncIterator[OwnKafka]:
    """A broker whose data and process are gone at the end. Raises Missing."""
    own = OwnKafka(folder, certificates=certificates, joining=joining)
    try:
        await own.start()
        yield own
    finally:
        await own.stop(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def three(folder: Path) -> AsyncIterator[Sequence[OwnKafka]]:
    """A cluster of three brokers, any one of which may be away. Raises Missing."""
    controllers = free_ports(3)
    async with AsyncExitStack() as stack:
        brokers = [OwnKafka(folder / str(node), node, controllers) for node in (1, 2, 3)]
        for broker in brokers:
            stack.push_async_callback(broker.stop, signal.SIGKILL)
        async with asyncio.TaskGroup() as tasks:
            for broker in brokers:
                tasks.create_task(broker.start())
        yield brokers
    shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


if __name__ == "__main__":
    try:
        jars()  # ahead of the tests, which have a timeout each
    except Missing as missing:
        print(f"kafka_server: {missing}")
