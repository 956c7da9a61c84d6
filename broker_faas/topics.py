"""Topics, that events are published to, and patterns, that functions listen to. Pure.

A topic is dot-separated words of letters, digits, `_` and `-`: `orders.created`. In a pattern `*` stands for one word, and a
`>` at the end for one or more: `orders.*`, `orders.>`. Functions may also send to a destination outside of the bus, a topic
behind a sink's name and a colon: `orders-out:orders.done`. A pattern without that name never matches one with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .errors import ConfigError, TopicInvalid

MAX_TOPIC = 200  # characters

_TOPIC = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_PREFIXED = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*):(.*)", re.DOTALL)
_PART = re.compile(r"[A-Za-z0-9_-]+")


def is_topic(topic: str) -> bool:
    return len(topic) <= MAX_TOPIC and bool(_TOPIC.fullmatch(topic))


def check_topic(topic: str) -> str:
    """The topic itself, or TopicInvalid saying which part is wrong."""
    if not isinstance(topic, str):
        raise TopicInvalid(f"a topic is a string like 'orders.created', not {type(topic).__name__}")
    if is_topic(topic):
        return topic
    hint = "Topics are dot-separated words of letters, digits, '_' and '-', like 'orders.created'."
    shown = repr(topic if len(topic) <= 60 else topic[:57] + "...")
    if not topic:
        raise TopicInvalid(f"the topic is empty. {hint}")
    if len(topic) > MAX_TOPIC:
        raise TopicInvalid(f"topic {shown} has {len(topic)} characters; the limit is {MAX_TOPIC}. {hint}")
    for part in topic.split("."):
        if not part:
            raise TopicInvalid(f"topic {shown} has an empty part. {hint}")
        if part in ("*", ">"):
            raise TopicInvalid(f"topic {shown} has a wildcard: functions listen with them, events are published to one topic. {hint}")
        if not _PART.fullmatch(part):
            bad = next(c for c in part if not _PART.fullmatch(c))
            raise TopicInvalid(f"topic {shown} has {bad!r} in part {part[:40]!r}. {hint}")
    raise AssertionError(topic)


def check_destination(topic: str) -> str:
    """Where a function sends to: a topic, or one behind a sink's name and a colon. Raises TopicInvalid."""
    if not isinstance(topic, str):
        check_topic(topic)
    sink, there = sink_of(topic)
    check_topic(there if sink else topic)
    return topic


def is_destination(topic: str) -> bool:
    return is_topic(sink_of(topic)[1])


def sink_of(topic: str) -> tuple[str, str]:
    """(sink, topic there) of a topic or pattern that leaves the bus; ("", topic) of any other."""
    if ":" in topic and (match := _PREFIXED.fullmatch(topic)):
        return match[1], match[2]
    return "", topic


def check_pattern(pattern: str) -> str:
    """A topic in which a part may be `*` (any one part) and the last may be `>` (one or more parts)."""
    parts = pattern.split(".")
    plain = [part for i, part in enumerate(parts) if not (part == "*" or (part == ">" and i == len(parts) - 1))]
    if len(pattern) <= MAX_TOPIC and all(_PART.fullmatch(part) for part in plain):
        return pattern
    if ">" in parts[:-1]:
        raise TopicInvalid(f"pattern {pattern!r} has '>' before its end; it stands for all that follows and comes last, like 'orders.>'.")
    if plain:
        check_topic(".".join(plain))
    raise TopicInvalid(f"pattern {pattern!r} has {len(pattern)} characters; the limit is {MAX_TOPIC}.")


def matches(pattern: str, topic: str) -> bool:
    """Whether an event published to `topic` goes to a function that listens to `pattern`."""
    want, have = _parts(pattern), _parts(topic)
    for i, part in enumerate(want):
        if part == ">":
            return len(have) > i
        if i >= len(have) or (part != "*" and part != have[i]):
            return False
    return len(want) == len(have)


def minimal(patterns: Iterable[str]) -> tuple[str, ...]:
    """Patterns without those that another one covers; ConfigError if two overlap only in part (JetStream refuses that)."""
    kept: list[str] = []
    for pattern in dict.fromkeys(patterns):
        if any(covers(other, pattern) for other in kept):
            continue
        kept = [other for other in kept if not covers(pattern, other)] + [pattern]
    for i, one in enumerate(kept):
        for two in kept[i + 1 :]:
            if overlap(_parts(one), _parts(two)):
                raise ConfigError(
                    f"topics {one!r} and {two!r} overlap: an event could match both. Use one pattern that covers them, or two functions."
                )
    return tuple(kept)


def covers(wide: str, narrow: str) -> bool:
    """Whether all that matches `narrow` matches `wide`; patterns or subject filters."""
    w, n = _parts(wide), _parts(narrow)
    for i, part in enumerate(w):
        if part == ">":
            return len(n) > i
        if i >= len(n) or n[i] == ">" or (part != "*" and part != n[i]):
            return False
    return len(w) == len(n)


def overlap(one: Sequence[str], two: Sequence[str]) -> bool:
    """Whether something could match both patterns or subject filters, given as their parts."""
    for a, b in zip(one, two, strict=False):
        if a == ">" or b == ">":
            return True
        if a != "*" and b != "*" and a != b:
            return False
    return len(one) == len(two)


def _parts(pattern: str) -> list[str]:
    """The sink, "" without one, and the words: what leaves the bus is no word's match."""
    sink, words = sink_of(pattern)
    return [sink, *words.split(".")]
