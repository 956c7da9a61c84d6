"""What `faas --help` costs and says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from broker_faas.cli.main import COMMANDS, faas, run

HEAVY = ("asyncio", "nats", "msgspec", "orjson", "uvloop", "ssl", "logging", "json", "broker_faas.event", "broker_faas.config")


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from broker_faas.cli.main import run; run(['--help']); print(*sys.modules, sep='\\n', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "Usage: faas" in done.stdout
    assert [] == [name for name in HEAVY if name in done.stderr.split()]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


@pytest.mark.parametrize("path", [*commands(faas)], ids=" ".join)
def test_help_of_every_command_has_an_example(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code = run([*path, "--help"])

    assert code == 0
    said = capsys.readouterr().out
    assert "Example:" in said
    assert f"faas {path[0]}" in said.partition("Example:")[2]


def test_every_command_is_listed_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--help"])

    said = capsys.readouterr().out
    assert [] == [name for name, what in COMMANDS.items() if f"{name}  " not in said or what not in said]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pubish"], "there is no command 'pubish'. Did you mean 'publish'?"),
        (["zzz"], "there is no command 'zzz'."),
        (["dead", "lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["lag", "--ulr", "x"], "No such option '--ulr'. Did you mean '--url'?"),
        (["publish"], "Missing argument 'TOPIC'."),
        (["lag", "-o", "yaml"], "'yaml' is not one of 'table', 'json'"),
        (["publish", "a.b", "{}", "-f", "x"], "give DATA or -f, not both."),
        (["publish", "a.b", "{}", "--delay", "soon"], "'soon' is no duration: write 30, 500ms, 30s, 5m, 2h or 1d"),
        (["publish", "a.b", "{}", "--at", "noon"], "'noon' is no time: write 2030-01-31T08:00:00Z"),
        (["publish", "a.b", "{}", "--at", "2030-01-31", "--delay", "5"], "give --delay or --at, not both."),
        (["publish", "a.b", "{}", "--header", "novalue"], "'novalue' has no name and value: write name=value"),
        (["publish", "a.b", "{}", "--rate", "5"], "--skip-bad and --rate are for -f."),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong_and_exits_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = run(arguments)

    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("faas: ")
    assert said in error
    assert "--help'." in error


def test_a_group_alone_shows_its_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["dead"])

    assert code == 2
    assert "Usage: faas dead" in capsys.readouterr().err
