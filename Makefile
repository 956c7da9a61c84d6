# Everything happens in .venv, made from a lock file by tools/venv. `make demo` and `make test` are all you need.
# Thousands of processes of the tests import the same modules, which are compiled once, whatever the shell's environment asks for.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: demo test faults bench bench-compare lint format lock clean

demo: # the product at work on real data
	@tools/venv requirements.lock
	@.venv/bin/python examples/earthquakes/demo.py

test: lint # what CI runs
	@tools/fault-tools
	@tools/test-servers
	@.venv/bin/python -m tests

faults: # the promises, against killed processes, cut networks and lost power; SCENARIO=F21,F22 SEED=7 JOBS=3
	@tools/venv requirements-dev.lock
	@tools/fault-tools
	@.venv/bin/python -m tests.faults SCENARIO=$(SCENARIO) SEED=$(SEED) JOBS=$(JOBS) SHORT=$(SHORT)

bench: # ours beside its peers; ONLY=drain,latency PEERS=celery,faststream ROUNDS=3
	@tools/venv requirements-dev.lock
	@tools/venv requirements-peers.lock .venv-peers
	@test -d /usr/lib/rabbitmq || [ "$$(id -u)" != 0 ] || { echo "bench: apt-get install rabbitmq-server"; \
		{ apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends rabbitmq-server; } >/dev/null; }
	@tools/test-servers
	@.venv/bin/python -m benchmarks ONLY=$(ONLY) PEERS=$(PEERS) ROUNDS=$(ROUNDS)

bench-compare: # two files of benchmarks/results: A=… B=…
	@.venv/bin/python -m benchmarks.report $(A) $(B)

lint:
	@tools/venv requirements-dev.lock
	@.venv/bin/ruff format --check --output-format concise . || { echo "not formatted: run 'make format'"; exit 1; }
	@.venv/bin/ruff check --quiet .
	@.venv/bin/mypy

format:
	@tools/venv requirements-dev.lock
	@.venv/bin/ruff check --quiet --fix-only .
	@.venv/bin/ruff format .

# Needs uv (pip install uv). Raises every version to the newest; for one: add --upgrade-package NAME instead.
COMPILE = uv pip compile --quiet pyproject.toml --upgrade --universal --python-version 3.11 --all-extras --group build \
	--generate-hashes --no-header --no-annotate --no-emit-index-url
lock:
	$(COMPILE) --output-file requirements.lock
	$(COMPILE) --group test --constraints requirements.lock --output-file requirements-dev.lock
	$(COMPILE) --group peers --output-file requirements-peers.lock

clean: # also the demo's data
	rm -rf .venv .faas examples/*/.demo dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis faults-report .servers
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
