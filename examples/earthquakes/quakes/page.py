"""The report: one self-contained HTML page. The same alerts make the same bytes, so writing it twice changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from html import escape
from pathlib import Path

from . import world
from .model import Alert

_DEPTHS = ((70.0, "shallow", "under 70 km"), (300.0, "middle", "70 to 300 km"), (float("inf"), "deep", "over 300 km"))


def render(alerts: Collection[Alert]) -> str:
    """The page for these alerts, one at least."""
    strongest = sorted(alerts, key=lambda alert: (-alert.magnitude, alert.time))
    first, last = min(alerts, key=lambda a: a.time).moment, max(alerts, key=lambda a: a.time).moment
    days = f"{first:%-d %B} to {last:%-d %B %Y}"
    parts = [
        f"<header><h1>A week of strong earthquakes</h1><p>{days}, magnitude 4.5 and above</p></header>",
        f'<section class="facts">{_facts(strongest)}</section>',
        f"<figure>{_map(strongest)}<figcaption>{_legend()}</figcaption></figure>",
        f"<figure><h2>When</h2>{_timeline(strongest)}</figure>",
        f'<section class="columns"><figure><h2>How strong</h2>{_magnitudes(strongest)}</figure>',
        f"<figure><h2>Where</h2>{_countries(strongest)}</figure></section>",
        f"<section><h2>All {len(strongest)}, strongest first</h2>{_table(strongest)}</section>",
        '<footer>Data: <a href="https://earthquake.usgs.gov/">U.S. Geological Survey</a>, public domain. Land drawn by hand.</footer>',
    ]
    style = Path(__file__).with_name("page.css").read_text()
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>A week of strong earthquakes</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{style}</style></head><body>' + "\n".join(parts) + "</body></html>\n"


# --- parts --------------------------------------------------------------------------------------------------


def _facts(alerts: Sequence[Alert]) -> str:
    strongest, deepest = alerts[0], max(alerts, key=lambda alert: alert.depth)
    # Gutenberg and Richter: log10 of the radiated energy in joules is 1.5 M + 4.8. A kiloton of TNT is 4.184e12 J.
    kilotons = sum(10 ** (1.5 * alert.magnitude + 4.8) for alert in alerts) / 4.184e12
    facts = [
        (f"{len(alerts)}", "earthquakes"),
        (f"{strongest.magnitude:.1f}", f"strongest: {strongest.place}"),
        (f"{deepest.depth:.0f} km", f"deepest: {deepest.place}"),
        (f"{kilotons:,.0f} kt", "of TNT would radiate as much energy"),
    ]
    return "".join(f"<p><b>{escape(figure)}</b> {escape(text)}</p>" for figure, text in facts)


def _map(alerts: Sequence[Alert]) -> str:
    edge = world.outline()
    drawing = [
        f'<clipPath id="world"><path d="{edge}"/></clipPath><path class="sea" d="{edge}"/><g clip-path="url(#world)">',
        f'<path class="grid" d="{world.graticule()}"/><path class="land" d="{world.land()}"/><path class="sea" d="{world.lakes()}"/></g>',
    ]
    for alert in alerts:  # strongest first: the small ones lie on top and stay visible
        x, y = world.project(alert.longitude, alert.latitude)
        drawing.append(_dot(alert, x, y, _radius(alert)))
    drawing += _names(alerts)
    return f'<svg viewBox="-2 -2 {world.WIDTH + 4:.0f} {world.HEIGHT + 4:.0f}" role="img" aria-label="World map">{"".join(drawing)}</svg>'


def _names(alerts: Sequence[Alert]) -> list[str]:
    """The countries of the strongest, beside their dots: to the right if there is room, else to the left, else not at all."""
    strongest: dict[str, Alert] = {}
    for alert in alerts:
        strongest.setdefault(alert.country, alert)
    drawing, taken = [], list[tuple[float, float, float]]()
    for country, alert in [*strongest.items()][:8]:
        x, y = world.project(alert.longitude, alert.latitude)
        length, gap = 7.2 * len(f"{country} 0.0"), _radius(alert) + 5
        for side, start in (("", x + gap), (" left", x - gap - length)):
            free = all(abs(y - row) > 14 or start > right or start + length < left for left, right, row in taken)
            if free and 0 < start < world.WIDTH - length:
                taken.append((start, start + length, y))
                anchor = x - gap if side else start
                label = f"{escape(country)} <tspan>{alert.magnitude:.1f}</tspan>"
                drawing.append(f'<text class="name{side}" x="{anchor:.1f}" y="{y + 4:.1f}">{label}</text>')
                break
    return drawing


def _radius(alert: Alert) -> float:
    return float(3 * 2 ** (0.95 * (alert.magnitude - 4.5)))


def _legend() -> str:
    return " ".join(f'<span><i class="{name}"></i>{text} deep</span>' for _, name, text in _DEPTHS)


def _timeline(alerts: Sequence[Alert]) -> str:
    """A stem an earthquake: when, and how strong."""
    start = min(alert.moment for alert in alerts).replace(hour=0, minute=0, second=0, microsecond=0)
    days = (max(alert.moment for alert in alerts) - start).days + 1
    low, high, width, height, base = 4.0, max(7.0, alerts[0].magnitude), 960.0, 150.0, 160.0

    def x(moment: datetime) -> float:
        return 30 + (moment - start) / timedelta(days=days) * width

    def y(magnitude: float) -> float:
        return base - (magnitude - low) / (high - low) * height

    drawing = []
    for magnitude in range(int(low), int(high) + 1):
        drawing.append(f'<path class="grid" d="M30 {y(magnitude):.1f}h{width:.0f}"/>')
        drawing.append(f'<text class="left" x="22" y="{y(magnitude) + 4:.1f}">{magnitude}</text>')
    for day in range(days):
        left = x(start + timedelta(days=day))
        drawing.append(f'<path class="grid" d="M{left:.1f} {base - height:.0f}v{height + 6:.0f}"/>')
        drawing.append(f'<text x="{left + 5:.1f}" y="{base + 18:.0f}">{start + timedelta(days=day):%a %-d %b}</text>')
    for alert in alerts:
        top = y(alert.magnitude)
        drawing.append(f'<path class="stem" d="M{x(alert.moment):.1f} {base:.0f}V{top:.1f}"/>{_dot(alert, x(alert.moment), top, 3.4)}')
    return f'<svg viewBox="0 0 1000 186" role="img" aria-label="Magnitudes over time">{"".join(drawing)}</svg>'


def _magnitudes(alerts: Sequence[Alert]) -> str:
    """How many of each magnitude, in steps of 0.1."""
    counts = Counter(round(alert.magnitude, 1) for alert in alerts)
    steps = [round(step / 10, 1) for step in range(round(min(counts) * 10), round(max(counts) * 10) + 1)]
    width, tallest = 470 / len(steps), max(counts.values())
    drawing = []
    for i, step in enumerate(steps):
        x, count = 5 + i * width, counts[step]
        height = 150 * count / tallest
        if count:
            drawing.append(f'<rect x="{x + 1:.1f}" y="{165 - height:.1f}" width="{width - 2:.1f}" height="{height:.1f}" rx="2"/>')
            drawing.append(f'<text class="middle" x="{x + width / 2:.1f}" y="{160 - height:.1f}">{count}</text>')
        if i % 2 == 0:
            drawing.append(f'<text class="middle" x="{x + width / 2:.1f}" y="182">{step}</text>')
    return f'<svg viewBox="0 0 480 190" role="img" aria-label="How many of each magnitude">{"".join(drawing)}</svg>'


def _countries(alerts: Sequence[Alert]) -> str:
    counts = Counter(alert.country for alert in alerts).most_common(8)
    rows = []
    for i, (country, count) in enumerate(counts):
        y, width = 4 + i * 23, 260 * count / counts[0][1]
        rows.append(f'<text class="left" x="172" y="{y + 13}">{escape(country[:26])}</text>')
        rows.append(f'<rect x="180" y="{y}" width="{width:.1f}" height="17" rx="2"/>')
        rows.append(f'<text x="{186 + width:.1f}" y="{y + 13}">{count}</text>')
    return f'<svg viewBox="0 0 480 190" role="img" aria-label="Countries with the most">{"".join(rows)}</svg>'


def _table(alerts: Sequence[Alert]) -> str:
    rows = []
    for alert in alerts:
        place = f'<a href="{escape(alert.url)}">{escape(alert.place)}</a>' if alert.url.startswith("https://") else escape(alert.place)
        rows.append(
            f'<tr><td><i class="{_depth(alert)}"></i>{alert.magnitude:.1f}</td><td>{place}</td>'
            f"<td>{alert.moment:%a %-d %b, %H:%M}</td><td>{alert.depth:.0f} km</td></tr>"
        )
    head = "".join(f"<th>{title}</th>" for title in ("Magnitude", "Place", "Time (UTC)", "Depth"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _dot(alert: Alert, x: float, y: float, radius: float) -> str:
    title = f"{alert.magnitude:.1f}, {alert.place}, {alert.moment:%-d %b %H:%M} UTC, {alert.depth:.0f} km deep"
    return f'<circle class="{_depth(alert)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(title)}</title></circle>'


def _depth(alert: Alert) -> str:
    return next(name for limit, name, _ in _DEPTHS if alert.depth < limit)
