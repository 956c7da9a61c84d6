"""Functions that run when messages arrive.

The names below are imported when first used: `import broker_faas` alone costs next to nothing.
"""

import sys
from types import ModuleType

TYPE_CHECKING = False  # type checkers take it for True; `typing` alone would cost more than all this
if TYPE_CHECKING:
    from .client import connect, connect_sync
    from .errors import Reject, Retry
    from .event import CloudEvent
    from .function import Context, function
    from .retry import RetryPolicy

__all__ = ["CloudEvent", "Context", "Reject", "Retry", "RetryPolicy", "connect", "connect_sync", "function"]

_OWNERS = {
    "CloudEvent": "event",
    "Context": "function",
    "Reject": "errors",
    "Retry": "errors",
    "RetryPolicy": "retry",
    "connect": "client",
    "connect_sync": "client",
    "function": "function",
}


class _Package(ModuleType):
    """The decorator `function` and the submodule of that name: whoever imports the submodule would hide the decorator. It stays."""

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value.function if name == "function" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package

if not TYPE_CHECKING:  # so that type checkers know the names above, and no others

    def __getattr__(name):
        if name not in _OWNERS:
            raise AttributeError(f"module 'broker_faas' has no attribute {name!r}; it offers {', '.join(__all__)}")
        from importlib import import_module

        value = getattr(import_module(f".{_OWNERS[name]}", __name__), name)
        globals()[name] = value  # from now on without this function
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
