"""docs/reference/cli.md is what the commands say of themselves. After a change: python -m tests.unit.test_cli_page"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from broker_faas.cli.main import COMMANDS, faas

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"

HEAD = """\
# The command line

`faas COMMAND --help` says the same as this page, which is made from it.

**Which bus.** `--url`, else the environment variable `NATS_URL`, else `bus.url` in `faas.toml`, else the `faas dev` that runs in this
project. `faas dev` itself starts a server of its own where the first three say nothing.

**Output.** Every listing takes `-o json`: one JSON document, a list of rows with more fields than the table (`events --follow`: one line
an event). Listings go to stdout; what is said to a person (notes, progress, errors) to stderr. Colours only on a terminal, and not with
`NO_COLOR`.

**Exit codes.**

| code | means |
|---|---|
| 0 | done |
| 1 | not done: a bad event, nothing found, a check that failed, the answer was no |
| 2 | the command line is wrong |
| 70 | a bug of ours, the bus closed for good, or no progress: a supervisor starts a fresh process |
| 75 | the bus cannot be reached, or is full: try again later |
| 78 | the configuration, the code or a permission is wrong: mend it first |
| 130 | Ctrl-C |

**Completion.** `eval "$(_FAAS_COMPLETE=bash_source faas)"` in `~/.bashrc`; `zsh_source` and `fish_source` for the others.

**Variables.** `NATS_URL` names the bus. `FAAS_NATS_SERVER` is another nats-server (2.15.1 or later) for `faas dev` to start.

"""


def page() -> str:
    sections = [HEAD]
    for path, help in _helps(click.Context(faas, info_name="faas", max_content_width=100, terminal_width=100)):
        what = f"{COMMANDS[path[-1]]}\n\n" if len(path) == 2 else ""
        level = "#" * len(path)
        sections.append(f"{level} {' '.join(path)}\n\n{what}```\n{help.rstrip()}\n```\n\n")
    return "".join(sections).rstrip() + "\n"


def _helps(context: click.Context) -> Iterator[tuple[list[str], str]]:
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command
        settings = {"max_content_width": 100, "terminal_width": 100, "help_option_names": ["-h", "--help"]}
        inner = click.Context(command, info_name=name, parent=context, **settings)  # type: ignore[arg-type]
        yield inner.command_path.split(), command.get_help(inner)
        if isinstance(command, click.Group):
            yield from _helps(inner)


def test_the_page_says_what_the_commands_say() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.unit.test_cli_page"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())
