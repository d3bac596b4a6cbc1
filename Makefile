# make demo | run | test | check | bench | autogluon | setup. Nothing is needed beside Python 3.11 to 3.13 and git; all
# of it stays in .tools (uv, which reads the lock) and .venv (what it installs). Another Python: make PYTHON=python3.12 …

PYTHON ?= python3
ARGS ?=
UV_VERSION := 0.13.9

export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := $(CURDIR)/.venv

.PHONY: demo run test check lint bench autogluon setup clean
.DELETE_ON_ERROR:

demo: setup
	@exec .venv/bin/headroom demo $(ARGS)

run: setup
	@exec .venv/bin/headroom run $(ARGS)

test: setup
	@exec .venv/bin/pytest -n 4 --dist worksteal $(ARGS)

check: lint test

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# A folder of panels: make bench DATA=…; else the reference fleet alone, unless the development panels are there.
bench: setup
	@exec .venv/bin/python -m benchmarks $(if $(DATA),--data "$(DATA)") $(ARGS)

# AutoGluon's needs contradict Headroom's: an environment of its own beside .venv, where Headroom looks for it. torch
# comes from its makers' index of builds for CPUs; where that is out of reach, from where pip would look.
autogluon: setup
	.tools/uv venv --quiet --allow-existing --python .venv/bin/python .autogluon
	.tools/uv pip sync --quiet --python .autogluon --torch-backend cpu docker/autogluon.txt || \
	  UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" .tools/uv pip sync --quiet --python .autogluon docker/autogluon.txt
	.autogluon/bin/python -I -c 'import autogluon.timeseries'

setup: .venv/.locked

# Again only when the lock or the project's own list of needs changed.
.venv/.locked: uv.lock pyproject.toml | .tools/uv
	.tools/uv sync --frozen --python "$(PYTHON)"
	@.venv/bin/python -c 'import lightgbm' 2>/dev/null || { apt-get update -qq && apt-get install -qq -y libgomp1; } || { \
	  echo "LightGBM needs the OpenMP library. As root: apt-get install libgomp1" >&2; exit 1; }
	@touch $@

# A uv that is there serves as well as the one we would fetch. Debian's python3 comes without ensurepip, so where
# `venv` cannot, pip alone will do.
.tools/uv:
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "Headroom needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is not one. Name another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@mkdir -p .tools
	@if found=$$(command -v uv); then ln -sf "$$found" $@; \
	elif "$(PYTHON)" -m venv .tools/env >/dev/null 2>&1; then \
	  .tools/env/bin/pip install --quiet --disable-pip-version-check "uv==$(UV_VERSION)" && ln -sf env/bin/uv $@; \
	elif rm -rf .tools/env && "$(PYTHON)" -m pip --version >/dev/null 2>&1; then \
	  "$(PYTHON)" -m pip install --quiet --disable-pip-version-check --target .tools/env "uv==$(UV_VERSION)" && \
	  ln -sf env/bin/uv $@; \
	else \
	  echo "$(PYTHON) can make no environments and has no pip. As root: apt-get install python3-venv" >&2; exit 1; \
	fi

clean:
	rm -rf .venv .autogluon .tools .mypy_cache .ruff_cache .pytest_cache
