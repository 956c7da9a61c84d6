# ruff: noqa: E501, RUF001  (markup)
"""faults-report/: index.html for people, summary.json for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from .ledger import Ledgers, read
from .scenario import Scenario

WIDTH, HEIGHT = 860, 110  # of a timeline
BIN = 0.5  # seconds

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#1a1a1a;background:#fff}
h1{font-size:1.5em}h2{font-size:1.1em;margin:2em 0 .2em}p{margin:.3em 0}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{padding:.3em .5em;text-align:right;border-bottom:1px solid #e5e5e5;vertical-align:top}
th{position:sticky;top:0;background:#fff;border-bottom:2px solid #1a1a1a}
th:nth-child(-n+2),td:nth-child(-n+2){text-align:left}.red{color:#b00020;font-weight:600}.green{color:#1b6e3c}
pre{white-space:pre-wrap;background:#fff3f3;padding:.6em;font-size:12.5px}small{color:#666}svg{width:100%;height:auto;margin:.4em 0}
"""


@dataclass(slots=True)
class Result:
    """One run. folder: its ledgers and logs. verdict: checker.Verdict's fields; empty if the run itself broke (see run.log)."""

    scenario: Scenario
    seed: int
    folder: Path
    seconds: float
    verdict: dict[str, Any] = field(default_factory=dict)

    @property
    def problems(self) -> list[tuple[str, str]]:
        if not self.verdict:
            return [("run", "it broke off; see run.log")]
        return [(check, what) for check, what in self.verdict["problems"]]

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def red(self) -> set[str]:
        return {check for check, _ in self.problems}


def summary(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row a scenario; several runs of one are added up, and its seed is that of the first red run, else of the first."""
    rows = []
    for name in dict.fromkeys(result.scenario.name for result in results):
        runs = [result for result in results if result.scenario.name == name]
        shown = next((run for run in runs if not run.ok), runs[0])
        row: dict[str, Any] = {"scenario": name, "seed": shown.seed}
        for key in ("faults_planned", "faults_observed", "acknowledged", "done", "dead", "lost", "duplicates"):
            row[key] = sum(run.verdict.get(key, 0) for run in runs)
        row["longest_gap_s"] = round(max(run.verdict.get("longest_gap", 0.0) for run in runs), 2)
        rows.append(row | {"runs": len(runs), "ok": all(run.ok for run in runs)})
    return rows


def write(results: Sequence[Result], skipped: Sequence[tuple[Scenario, str]], folder: Path, title: str) -> None:
    rows = summary(results)
    folder.mkdir(parents=True, exist_ok=True)  # nothing may have run
    (folder / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    by_name = {result.scenario.name: result for result in reversed(results)} | {r.scenario.name: r for r in results if not r.ok}
    red = sum(not row["ok"] for row in rows)
    head = "all green" if not red else f"{red} of {len(rows)} scenarios red"
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>Faults: {head}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>Faults: <span class={'red' if red else 'green'}>{head}</span></h1><p>{escape(title)}</p>")
    parts.append(
        "<table><tr><th>scenario<th>what<th>faults seen<th>acknowl&shy;edged<th>done<th>dead<th>lost<th>dupli&shy;cates<th>longest gap<th>"
    )
    for row in rows:
        scenario = by_name[row["scenario"]].scenario
        verdict = "<td class=green>green" if row["ok"] else "<td class=red>RED"
        many = f" <small>× {row['runs']} runs</small>" if row["runs"] > 1 else ""
        parts.append(
            f"<tr><td><a href='#{escape(row['scenario'])}'>{escape(row['scenario'])}</a><td>{escape(scenario.what)}{many}"
            f"<td>{row['faults_observed']} of {row['faults_planned']}<td>{row['acknowledged']:,}<td>{row['done']:,}<td>{row['dead']:,}"
            f"<td class={'red' if row['lost'] else 'green'}>{row['lost']:,}<td>{row['duplicates']:,}<td>{row['longest_gap_s']:.1f} s{verdict}"
        )
    for scenario, why in skipped:
        parts.append(
            f"<tr><td>{escape(scenario.name)}<td>{escape(scenario.what)}<td colspan=7>NOT RUN HERE: {escape(why)}<td class=red>skipped"
        )
    parts.append("</table><p><small>Acknowledged: publish() returned. Done: an event and a function that succeeded, so twice as many where two "
                 "functions listen. Duplicates: successes beyond the first, within what the faults explain. Longest gap: without any success, "
                 "while events were published.</small></p>")  # fmt: skip
    parts += [_section(by_name[row["scenario"]]) for row in rows]
    (folder / "index.html").write_text("\n".join(parts) + "\n")


def _section(result: Result) -> str:
    scenario = result.scenario
    parts = [f"<h2 id='{escape(scenario.name)}'>{escape(scenario.name)}: {escape(scenario.what)}</h2>"]
    parts.append(f"<p><small>seed {result.seed}, {result.seconds:.0f} s; shows {escape(', '.join(scenario.proves) or '-')}. Again: "
                 f"<code>make faults SCENARIO={escape(scenario.name)} SEED={result.seed}</code></small></p>")  # fmt: skip
    parts.append(_timeline(read(result.folder)))
    peaks = ", ".join(f"{escape(name)} {bytes_ / 1e6:.0f} MB" for name, bytes_ in sorted(result.verdict.get("peak", {}).items()))
    notes = "; ".join(escape(note) for note in result.verdict.get("notes", []))
    parts.append(f"<p><small>Most memory: {peaks}. {notes}</small></p>" if peaks else "")
    if result.problems:
        parts.append("<pre>" + escape("\n".join(f"{check}: {what}" for check, what in result.problems[:40])) + "</pre>")
    return "\n".join(parts)


def _timeline(run: Ledgers) -> str:
    """Acknowledged a second (line), successes a second (area), second deliveries (dots), faults (bands)."""
    if not run.attempts:
        return ""
    began = run.attempts[0].t
    last = max([end.t for end in run.ends] + [fault.t for fault in run.faults] + [run.attempts[-1].t])
    scale = WIDTH / max(last - began, 1.0)
    acks, oks = _rate([ack.t for ack in run.acks], began), _rate([end.t for end in run.ends if end.how == "ok"], began)
    seen: set[tuple[str, str]] = set()
    again = []
    for start in run.starts:
        if (start.id, start.function) in seen:
            again.append(start.t)
        seen.add((start.id, start.function))
    most = max([*acks.values(), *oks.values(), 1.0])

    def path(rate: dict[int, float], *, closed: bool) -> str:
        bins = range(int((last - began) / BIN) + 2)
        points = " L".join(f"{n * BIN * scale:.1f},{HEIGHT - 14 - (HEIGHT - 30) * rate.get(n, 0.0) / most:.1f}" for n in bins)
        return f"M0,{HEIGHT - 14} L{points} L{WIDTH},{HEIGHT - 14} Z" if closed else f"M{points}"

    parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='timeline'>"]
    for t, until, what in _bands(run):
        x, width = (t - began) * scale, max(1.5, (until - t) * scale)
        parts.append(f"<rect x='{x:.1f}' y='14' width='{width:.1f}' height='{HEIGHT - 28}' fill='#f3b0b0' opacity='.7'><title>{escape(what)}, {until - t:.1f} s</title></rect>")  # fmt: skip
    parts.append(
        f"<path d='{path(oks, closed=True)}' fill='#9cc4e4' opacity='.8'/><path d='{path(acks, closed=False)}' fill='none' stroke='#1a3d5c'/>"
    )
    for n, count in sorted(Counter(int((t - began) / BIN) for t in again).items()):
        parts.append(f"<circle cx='{n * BIN * scale:.1f}' cy='9' r='{min(6.0, 1.5 + count**0.5 / 3):.1f}' fill='#c77700'><title>{count} second deliveries</title></circle>")  # fmt: skip
    parts.append(f"<text x='0' y='{HEIGHT - 2}' font-size='10'>0 s</text><text x='{WIDTH}' y='{HEIGHT - 2}' font-size='10' text-anchor='end'>{last - began:.0f} s</text>")  # fmt: skip
    parts.append(f"<text x='{WIDTH / 2}' y='{HEIGHT - 2}' font-size='10' text-anchor='middle' fill='#666'>line: acknowledged; area: successes; up to {most:.0f}/s; red: "
                 "fault; dots: second deliveries</text></svg>")  # fmt: skip
    return "".join(parts)


def _rate(times: list[float], began: float) -> dict[int, float]:
    return {n: count / BIN for n, count in Counter(int((t - began) / BIN) for t in times).items()}


def _bands(run: Ledgers) -> list[tuple[float, float, str]]:
    """(from, until, what) of each fault that was seen."""
    bands, planned = [], {}
    for fault in run.faults:
        if fault.kind == "planned":
            planned[fault.what] = fault.t
        elif fault.kind == "heal" and fault.what in planned:
            bands.append((planned.pop(fault.what), fault.t, fault.what))
    return bands
