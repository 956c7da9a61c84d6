"""What `import broker_faas` offers, and what it costs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import broker_faas

ROOT = Path(__file__).parents[2]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_the_public_names_are_few_and_sorted() -> None:
    assert broker_faas.__all__ == ["CloudEvent", "Context", "Reject", "Retry", "RetryPolicy", "connect", "connect_sync", "function"]


@pytest.mark.parametrize("name", broker_faas.__all__)
def test_each_public_name_is_its_owners(name: str) -> None:
    found = getattr(broker_faas, name)

    assert found is getattr(importlib.import_module(found.__module__), name)
    assert found.__module__.startswith("broker_faas.")
    assert name in dir(broker_faas)


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import broker_faas; print(sorted(set(sys.modules) - before - {'types'}))"

    assert python(code) == "['broker_faas']"


@pytest.mark.parametrize(
    "first",
    [
        "pass",
        "import broker_faas.function",
        "from broker_faas import Context",
        "from broker_faas.function import Function",
        "import broker_faas.layout",
    ],
)
def test_function_is_the_decorator_whatever_was_imported_before(first: str) -> None:
    assert python(f"{first}\nfrom broker_faas import function\nprint(function.__name__, callable(function))") == "function True"


def test_declaring_functions_needs_no_nats_client() -> None:
    assert python("import sys\nfrom broker_faas import *\nfrom broker_faas import function\nprint('nats' in sys.modules)") == "False"


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match="no attribute 'publish'; it offers CloudEvent, Context"):
        broker_faas.publish  # type: ignore[attr-defined]  # noqa: B018
