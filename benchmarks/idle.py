"""A fresh Python process with what an executor has imported, idle: idle.py MODULE."""

from __future__ import annotations

import sys
import time

from broker_faas.workers import child, zygote  # noqa: F401

child.import_functions(sys.argv[1], {})
child.warm_up()
print("ready", flush=True)
time.sleep(600)
