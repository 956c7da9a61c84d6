"""docs/charts/*.svg from benchmarks/results/latest.json: python -m benchmarks.chart. Bars on a logarithmic scale, no library."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from .bench import shown
from .report import RESULTS

CHARTS = Path(__file__).parents[1] / "docs" / "charts"
SHOWN = {  # file: (measures, title)
    "drain": ("drain", "Drain of a backlog, events a second"),
    "steady": ("steady state", "Publisher and worker together, events a second"),
    "p50": ("p50 at 200/s", "Publish to handler entry at 200/s, median, ms"),
    "p99": ("p99 at 200/s", "Publish to handler entry at 200/s, 99th percentile, ms"),
}
WIDTH, LEFT, BAR, GAP = 820, 310, 20, 8
OURS, OTHERS = "#1f7a8c", "#c9ced6"


def bars(title: str, rows: list[dict[str, Any]]) -> str:
    """One bar a contender, best first as they stand; the whisker spans its rounds."""
    low = min(row["min"] for row in rows) / 2
    high = max(row["max"] for row in rows)
    room = WIDTH - LEFT - 90

    def x(value: float) -> float:
        return LEFT + room * math.log(value / low) / math.log(high / low)

    height = 50 + len(rows) * (BAR + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="13" role="img">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(title)} (logarithmic)</text>',
    ]
    for number, row in enumerate(rows):
        top = 40 + number * (BAR + GAP)
        middle = top + BAR / 2
        colour = OURS if row["contender"].startswith("ours") else OTHERS
        name, value = escape(row["contender"]), shown(row["median"])
        end = max(x(row["median"]), x(row["max"]))
        parts += [
            f'<text x="{LEFT - 10}" y="{middle + 5}" text-anchor="end">{name}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{x(row["median"]) - LEFT:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<line x1="{x(row["min"]):.1f}" x2="{x(row["max"]):.1f}" y1="{middle}" y2="{middle}" stroke="#333"/>',
            f'<text x="{end + 8:.1f}" y="{middle + 5}">{value}</text>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def main() -> None:
    CHARTS.mkdir(exist_ok=True)
    result = json.loads((RESULTS / "latest.json").read_text())
    for name, (measure, title) in SHOWN.items():
        rows = [row for row in result["rows"] if row["measure"] == measure and row["median"]]
        if rows:
            rows.sort(key=lambda row: row["median"], reverse=_is_rate(rows))
            (CHARTS / f"{name}.svg").write_text(bars(title, rows))


def _is_rate(rows: list[dict[str, Any]]) -> bool:
    return bool(rows[0]["unit"].endswith("/s"))


if __name__ == "__main__":
    main()
