"""What the functions read and send. An event whose data does not fit becomes a dead letter that says why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True)
class Properties:
    """Of a USGS feature; what we do not name is ignored. time: milliseconds since 1970; mag: None until somebody has worked it out."""

    type: str
    time: int
    mag: float | None = None
    place: str | None = None
    url: str = ""


@dataclass(frozen=True)
class Geometry:
    """coordinates: degrees east, degrees north, kilometres down."""

    coordinates: tuple[float, float, float]


@dataclass(frozen=True)
class Feature:
    id: str
    properties: Properties
    geometry: Geometry


@dataclass(frozen=True)
class Alert:
    """An earthquake worth telling about. time: seconds since 1970; depth: kilometres."""

    id: str
    magnitude: float
    place: str
    time: float
    longitude: float
    latitude: float
    depth: float
    url: str = ""

    @property
    def country(self) -> str:
        """`37km NNE of Amboy, Washington` → `Washington`; the feed names states of the US like countries."""
        return self.place.rsplit(", ", 1)[-1]

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.time, UTC)


def region_of(place: str) -> str:
    """`37km NNE of Amboy, Washington` → `Amboy, Washington`."""
    return place.rsplit(" of ", 1)[-1]
