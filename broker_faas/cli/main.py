"""`faas`: finds the command, and turns every error into one line on stderr and an exit code.

Nothing heavy is imported here: `faas --help` answers in < 100 ms. A command `x` is the function `x` of `cli/x.py`,
imported when it is used; this table holds the line that `faas --help` shows for it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import click

from ..errors import (
    BusFull,
    BusRefused,
    BusUnavailable,
    ConfigError,
    EventError,
    FaasError,
    SinkRefused,
    SinkUnavailable,
    SourceRefused,
    SourceUnavailable,
)
from .exit import CONFIG, FAILED, INTERNAL, INTERRUPTED, OK, UNAVAILABLE, USAGE, Failed

COMMANDS = {
    "new": "Make a project: faas.toml, a function, its test.",
    "dev": "Run the project here: a bus, a worker, reload on save.",
    "publish": "Publish one event, or a file of them.",
    "worker": "Run the project's functions against a bus.",
    "connect": "Run connectors and sinks: from other systems, and to them.",
    "connectors": "The project's connectors: state, lag at the source, last error.",
    "sinks": "The project's sinks: state, what waits, last error.",
    "gateway": "Take events over HTTP.",
    "keys": "Who may publish over HTTP: add, list, revoke.",
    "functions": "List functions and their queues; sync or prune them.",
    "lag": "How many events each function still has to do.",
    "peek": "The next events a function will get.",
    "dead": "Dead letters: list, show, replay, purge.",
    "quarantine": "What cannot become an event: list, show, replay, purge.",
    "events": "Events on the bus, the latest or as they come.",
    "schedule": "When the project's schedules fire: list, preview.",
    "check": "Would this project run, and what would deploying it change?",
    "config": "The configuration in effect, and where it comes from.",
    "doctor": "Check this machine, the bus and the project.",
}

NOT_FOUND = (10014, 10037)  # JetStream's err_codes: no such consumer, no such message


class ReaderGone(Exception):
    """Nobody reads our output any more."""


class LazyGroup(click.Group):
    """Imports a command's module when the command is used, and not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"broker_faas.cli.{name}"), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in COMMANDS or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        from difflib import get_close_matches

        near = get_close_matches(name, COMMANDS, 1)
        raise click.UsageError(f"there is no command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""), ctx)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # click would exit with 1
            raise ReaderGone from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"faas {version('broker-faas')}")
        except PackageNotFoundError:
            click.echo("faas, from a checkout that is not installed")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def faas(debug: bool) -> None:
    """Functions that run when messages arrive.

    \b
    Example:
      faas new hello && cd hello && faas dev
      faas publish orders.created '{"id": 1}'      # in another terminal, in the same folder
    """
    import logging

    logging.getLogger("broker_faas").setLevel(logging.ERROR)  # commands speak for themselves; dev and worker say otherwise


def main(arguments: Sequence[str] | None = None) -> None:
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """The exit code: 0, 1 failed, 2 usage, 70 internal or the bus closed for good, 75 bus unavailable, 78 configuration, 130 Ctrl-C."""
    try:
        code = faas.main(list(arguments), prog_name="faas", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except (ReaderGone, BrokenPipeError):
        # The reader has seen enough (`faas events | head`). What is still buffered must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return OK
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "faas"
        return _say(f"{error.format_message()}\nTry '{where} --help'.", USAGE)
    except click.ClickException as error:
        return _say(error.format_message(), FAILED)
    except BaseExceptionGroup as group:
        return _failed(_first(group), arguments)
    except Exception as error:
        return _failed(error, arguments)


def _failed(error: BaseException, arguments: Sequence[str]) -> int:
    if "--debug" in arguments[:1] and not isinstance(error, Failed):
        traceback.print_exception(error)
    match error:
        case Failed():
            return _say(str(error), error.code)
        case BusRefused() if error.code in NOT_FOUND:
            return _say(str(error), FAILED)
        case ConfigError() | BusRefused() | SourceRefused() | SinkRefused():
            return _say(str(error), CONFIG)
        case BusUnavailable() | BusFull() | SourceUnavailable() | SinkUnavailable():
            return _say(str(error), UNAVAILABLE)
        case EventError():
            return _say(str(error), FAILED)
        case FaasError():
            return _say(str(error), INTERNAL)
        case KeyboardInterrupt():
            return INTERRUPTED
        case _:
            hint = "" if "--debug" in arguments[:1] else f" This is a bug of ours; 'faas --debug {' '.join(arguments[:1])} …' shows where."
            return _say(f"internal error: {type(error).__name__}: {error}.{hint}", INTERNAL)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _say(message: str, code: int) -> int:
    if message:
        click.echo(f"faas: {message}", err=True)
    return code


if __name__ == "__main__":
    main()
