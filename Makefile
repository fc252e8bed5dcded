# The two commands that matter: `make demo` and `make test`. Each sets up what it needs, from nothing but
# Python 3.11, a C compiler, make and a package index.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# llama-cpp-python, which the tests compare with, ships as source only. These leave out what quantkit never uses and keep
# the build portable.
export CMAKE_ARGS ?= -DLLAMA_OPENSSL=OFF -DGGML_NATIVE=OFF

# The tests start hundreds of Python processes. Without stored bytecode each compiles what it imports of quantkit: up to
# 0.4 s of the 1.2 s that a command takes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: dist quick-installed help demo quick test snapshots test-full test-peers test-gpu bench bench-quality audit lint format docs readme ollama clean

help:
	@echo "make demo       convert real SmolLM2 weights to four GGUF types, check them, print perplexity"
	@echo "make quick      lint, and the tests that need no llama.cpp: about a minute"
	@echo "make test       set up and run the tests; DIST=worksteal changes how pytest-xdist spreads them"
	@echo "make snapshots  rewrite the stored help texts and JSON shapes of the commands"
	@echo "make test-full  the long checks too: llama.cpp's own converter in a venv of its own, every type, every kill"
	@echo "make test-peers GPTQModel, AutoAWQ and transformers load what quantkit writes, in environments of their own"
	@echo "make bench      side-by-side ratios against llama.cpp's convert + quantize and GPTQModel's GPTQ"
	@echo "make bench-quality  KL divergence against size, ours beside llama.cpp's, as a table and a plot"
	@echo "make audit      look up known vulnerabilities of the lowest versions that pyproject.toml admits"
	@echo "make lint       ruff, mypy, and the imports between rooms (import-linter)"
	@echo "make format     let ruff rewrite the code"
	@echo "make docs       make the generated pages of docs/reference"
	@echo "make ollama     make ollama/'s Modelfiles from recipes/"
	@echo "make dist       sdist, wheel and SBOM in dist/, reproducible and checked"
	@echo "make quick-installed  the quick tests against the installed wheel of make dist, in a copy without the sources"
	@echo "make clean      remove the virtual environments and the caches"

$(VENV)/core.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -e .
	@touch $@

$(VENV)/run.stamp: $(VENV)/core.stamp
	@echo "installing llama.cpp"
	$(PIP) install -q -e '.[run]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@echo "installing llama-cpp-python (builds llama.cpp from source: about 6 minutes on 2 cores, once)"
	$(PIP) install -q -e '.[run,dev]'
	@touch $@

demo: $(VENV)/core.stamp
	$(BIN)/python -m demo.convert
	@$(MAKE) --no-print-directory $(VENV)/run.stamp
	$(BIN)/python -m demo.perplexity

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The rooms whose tests need neither llama.cpp nor a process.
QUICK := tests/test_machine.py tests/test_files.py tests/gguf tests/quant tests/packed tests/imatrix tests/chat \
         tests/tokenizer tests/checkpoint tests/inspection

quick: lint
	$(BIN)/python -m pytest -m "not full" -n 2 --dist worksteal $(QUICK)

# Fixtures of a module are made once a file with loadfile, once a worker with worksteal. Files keep the order of their
# names: by number of tests, those with few and long ones would come last, and one worker would wait.
DIST ?= loadfile
# Of two cores a third worker uses what the other two leave while they wait for children.
WORKERS ?= 3

# Tokenizers, weights and programs of others, which the tests compare with: fetched and compiled once.
INPUTS := .cache/inputs.stamp

$(INPUTS): $(VENV)/dev.stamp tests/helpers/inputs.py
	@echo "fetching and compiling what the tests compare with (once)"
	$(BIN)/python -m tests.helpers.inputs $@
# pytest stores the tests' bytecode; else each worker compiles all of it, and both wait
	-@$(BIN)/python -m pytest -m "not full" --collect-only > /dev/null

test: lint $(INPUTS)
	$(BIN)/python -m pytest -m "not full" -n $(WORKERS) --dist $(DIST) --no-loadscope-reorder

snapshots: $(VENV)/dev.stamp
	$(BIN)/python -m pytest tests/cli/test_snapshots.py --write-snapshots

# The lines that the default tests run have a floor (pyproject.toml); the long checks run without the tracer. They have
# half an hour each: a few take minutes, and more on a busy machine.
test-full: lint audit
	QUANTKIT_EXAMPLES=all $(BIN)/python -m coverage run -m pytest -m "not full"
	$(BIN)/python -m coverage report
	$(BIN)/python -m pytest -m full --timeout=1800
	$(BIN)/python -m tools.mutation

test-peers: lint
	$(BIN)/python -m pytest -m peers tests/peers

bench: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.kernel_speed
	$(BIN)/python -m benchmarks.calibrated
	$(BIN)/python -m benchmarks.folders
	$(BIN)/python -m benchmarks.measured
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.plan_time
	$(BIN)/python -m benchmarks.install

# On a machine with an NVIDIA GPU; ten minutes. GPU_PYTHON: a python that has torch for it and quantkit's own packages.
GPU_PYTHON ?= $(BIN)/python
test-gpu: $(VENV)/dev.stamp
	$(GPU_PYTHON) -c "import torch" 2> /dev/null || $(GPU_PYTHON) -m pip install -q '.[torch]'
	$(GPU_PYTHON) -m benchmarks.gpu

bench-quality: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.quality

# pip-audit asks PyPI's database of advisories. A mirror of the package index may not have it; the packages are then
# listed as not audited.
audit: $(VENV)/dev.stamp
	test -x .cache/audit/bin/pip-audit || { $(PYTHON) -m venv .cache/audit && .cache/audit/bin/pip install -q pip-audit; }
	$(BIN)/python -m tools.floors > .cache/audit/floors.txt
	.cache/audit/bin/pip-audit -r .cache/audit/floors.txt --no-deps --disable-pip

docs readme: $(VENV)/dev.stamp
	$(BIN)/python -m tools.reference

ollama: $(VENV)/dev.stamp
	$(BIN)/python -m tools.ollama_folder

# The time of the last commit makes two builds equal; SOURCE_DATE_EPOCH in the environment overrides it.
DIST_TIME = $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct))

dist:
	rm -rf dist
	.cache/dist/bin/python -c "import build, cyclonedx_py, twine" 2>/dev/null || { $(PYTHON) -m venv .cache/dist && .cache/dist/bin/pip install -q build twine cyclonedx-bom; }
	SOURCE_DATE_EPOCH=$(DIST_TIME) .cache/dist/bin/python -m build
	.cache/dist/bin/python -m twine check --strict dist/*
	$(PYTHON) -m venv --clear .cache/installed && .cache/installed/bin/pip install -q dist/*.whl
	rm .cache/installed/lib/python3*/site-packages/quantkit-*.dist-info/direct_url.json # the SBOM would name this folder
	.cache/dist/bin/python -m cyclonedx_py environment --output-reproducible --of JSON -o dist/sbom.cdx.json .cache/installed/bin/python

# The tools of the tests come from the checkout's environment, where quantkit itself is only a link to the sources.
INSTALLED := .cache/installed-tests

quick-installed: $(VENV)/dev.stamp dist
	rm -rf $(INSTALLED) && mkdir -p $(INSTALLED)
	git archive HEAD | tar xf - -C $(INSTALLED) && rm -r $(INSTALLED)/quantkit && ln -s $(CURDIR)/.cache $(INSTALLED)/.cache
	cd $(INSTALLED) && PYTHONPATH=$$(echo $(CURDIR)/$(VENV)/lib/python3*/site-packages) \
	  $(CURDIR)/.cache/installed/bin/python -m pytest -m "not full" $(QUICK)

clean:
	rm -rf dist $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
