# make demo    a page on which one model generates, names and finds
# make test    the tests
# make check   format, lint, types, who may import whom
# make PYTHON=/path/to/python ...   another interpreter; default: the first found that is 3.11 or newer

IS_NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c "$(IS_NEW_ENOUGH)" 2>/dev/null && { echo $$p; break; }; done)
BIN = .venv/bin
EMOJI = data/emoji
# Tests run a few files of these, which do without torchvision; the packages ask for it, so nothing they ask for is installed.
WITHOUT_TORCHVISION = clip-benchmark open_clip_torch

.PHONY: demo test check clean

demo: .venv/installed | $(EMOJI)
	$(BIN)/palindiff demo --output demo

test: .venv/installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -c "import importlib.util as u, sys; sys.exit('torchvision is installed; expected none: no CPU build \
	of it fits, and its failing import takes others down. Remove it.' if u.find_spec('torchvision') else 0)"

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(EMOJI): | .venv/installed
	$(BIN)/palindiff data emoji --output $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Name one: make PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" -c "$(IS_NEW_ENOUGH)" || { "$(PYTHON)" --version; echo "Expected Python 3.11 or newer." >&2; exit 2; }
	"$(PYTHON)" -m venv .venv

# The stamps make pip run again only where one of these files is newer than the last installation that succeeded.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[emoji]'
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[emoji,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(WITHOUT_TORCHVISION)
	@touch $@ .venv/installed
