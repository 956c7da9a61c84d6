"""From a project's configuration to a running Worker: zygote, overrides, executors."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from ..bus import Bus
from ..config import Config, FunctionConfig
from ..errors import ConfigError, ExecutorError
from ..function import Spec
from ..service import Stuck
from ..service import first as first_of
from .dispatch import Pool
from .executor import Executor, Group
from .worker import Worker
from .zygote_handle import Output, Zygote, log_output

log = logging.getLogger(__name__)

REBIRTH = 10.0  # seconds that an executor waits for a new zygote
MAX_BACKOFF = 30.0  # seconds between two zygotes that die


@asynccontextmanager
async def open_worker(
    config: Config, bus: Bus, *, environ: Mapping[str, str] = os.environ, output: Output = log_output, ack_wait: float = 30.0
) -> AsyncIterator[Worker]:
    """A Worker for all functions of the project; its run() is a service.

    environ: of this process; user code sees an allow list of it. output: gets what user code prints. Raises ConfigError: a module
    that cannot be imported, a [function.NAME] that is about no function.
    """
    zygotes = _Zygotes(config, environ, output)
    first = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(zygotes.run(first))
            await first.wait()
            yield Worker(
                bus,
                config.project,
                [overridden(spec, config.functions.get(spec.name)) for spec in zygotes.specs],
                zygotes.fork,
                sinks=frozenset(sink.name for sink in config.sinks),
                environ={name: function.env for name, function in config.functions.items() if function.env},
                executors=config.worker.executors,
                recycle_events=config.worker.recycle_events,
                recycle_bytes=config.worker.recycle_bytes,
                ack_wait=ack_wait,
            )
            keeper.cancel()
    except BaseExceptionGroup as failures:
        raise first_of(failures) from None


def overridden(spec: Spec, config: FunctionConfig | None) -> Spec:
    """The function as declared, with what faas.toml says about it."""
    if config is None:
        return spec
    changes = {name: value for name in ("timeout", "concurrency") if (value := getattr(config, name)) is not None}
    if config.retry:
        try:
            changes["retry"] = msgspec.convert({**msgspec.to_builtins(spec.retry), **config.retry}, type(spec.retry))
        except (msgspec.ValidationError, ConfigError) as error:
            raise ConfigError(f"faas.toml: [function.{spec.name}] retry: {error}") from None
    return msgspec.structs.replace(spec, **changes)


class _Zygotes:
    """The project's zygote, and a new one when it dies."""

    def __init__(self, config: Config, environ: Mapping[str, str], output: Output) -> None:
        self._config = config
        self._environ = environ
        self._output = output
        self._now: Zygote
        self._up = asyncio.Event()
        self.specs: list[Spec] = []

    async def fork(self, group: Group, pool: Pool) -> Executor:
        try:
            async with asyncio.timeout(REBIRTH):
                await self._up.wait()  # after a death, a new one is on its way
        except TimeoutError:
            raise ExecutorError(f"the zygote died, and no new one was ready within {REBIRTH:g} s") from None
        return await self._now.fork(group, pool)

    async def run(self, first: asyncio.Event) -> None:
        """For ever. Only the first one's errors are raised, and Stuck: later, the events wait until it can be started again."""
        delay = 0.5
        while True:
            started = asyncio.get_running_loop().time()
            try:
                await self._one(first)
            except ConfigError as error:
                if not first.is_set():
                    raise
                log.error("zygote cannot be started again", extra={"reason": str(error), "retry_s": delay})
            delay = 0.5 if asyncio.get_running_loop().time() - started > MAX_BACKOFF else min(MAX_BACKOFF, delay * 2)
            await asyncio.sleep(delay)

    async def _one(self, first: asyncio.Event) -> None:
        config = self._config
        root = Path(config.root)
        opened = Zygote.open(
            config.modules,
            root,
            self._environ,
            config.worker.import_timeout,
            project=config.project,
            pass_env=config.worker.pass_env,
            output=self._output,
        )
        async with opened as zygote:
            for module, text in zygote.broken.items():
                raise ConfigError(f"module {module!r} cannot be imported:\n{text}")
            if first.is_set() and zygote.specs != self.specs:
                raise Stuck("the project's code changed while the worker ran, and its zygote died: only a new worker can run it")
            if not first.is_set():
                self.specs = zygote.specs
                config.check_functions(zygote.specs)
            self._now = zygote
            self._up.set()
            first.set()
            try:
                await zygote.closed.wait()
            finally:
                self._up.clear()
            log.error("zygote died; its calls run again", extra={"pid": zygote.pid})
