"""Every scenario there is, from the modules of this folder."""

from __future__ import annotations

import importlib
import pkgutil

from ..scenario import Scenario


def scenarios() -> dict[str, Scenario]:
    """By name, in the order of the files and their lines."""
    found: dict[str, Scenario] = {}
    for module in pkgutil.iter_modules(__path__):
        content = vars(importlib.import_module(f"{__name__}.{module.name}"))
        made = content["scenarios"]() if "scenarios" in content else []
        for one in [*(value for value in content.values() if isinstance(value, Scenario)), *made]:
            assert one.name not in found, f"two scenarios are named {one.name}"
            found[one.name] = one
    return found


def find(name: str) -> Scenario:
    known = scenarios()
    if name not in known:
        raise SystemExit(f"no scenario {name!r}; there are {', '.join(known)}")
    return known[name]
