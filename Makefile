# Each target makes the virtual environment that it needs, from requirements/locked.txt where nothing else is said.
# GPU=1 leaves torch, and only torch, to pip; otherwise requirements/torch.txt pins what has a build for CPUs.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin

TORCH := $(if $(GPU),,--constraint requirements/torch.txt)
LOCKED := --constraint requirements/locked.txt $(TORCH)
BACKEND := editables hatch-fancy-pypi-readme hatchling
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# $(call environment,folder,constraints): a new virtual environment, with the build backend of this package
environment = $(PYTHON) -m venv --clear $(1) && $(1)/bin/pip install -qq $(2) $(BACKEND)
INSTALL := install -qq --no-build-isolation

.PHONY: quickstart test coverage drills fuzz test-newest test-oldest test-torchvision docs dist lock benchmarks support support-timm cards clean

quickstart: $(VENV)-quickstart/installed
	@$(VENV)-quickstart/bin/python examples/quickstart.py

$(VENV)-quickstart/installed: pyproject.toml requirements/locked.txt requirements/torch.txt
	@echo "Installing what the quickstart needs in $(VENV)-quickstart: about a minute."
	@$(call environment,$(VENV)-quickstart,$(LOCKED))
	@$(VENV)-quickstart/bin/pip $(INSTALL) $(LOCKED) --editable .
	@touch $@

# Bytecode is kept, whatever the environment says: several interpreters read the same files.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# The tests once more, half as fast, with the lines and branches that each file's tests miss.
coverage: $(VENV)/installed
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal --cov --cov-report=term-missing:skip-covered
	@echo "coverage of lines and branches: $$($(BIN)/coverage report --format=total) %"

# Every command is killed before each of its changes to the disk; EVERY=8 kills before every eighth. Takes half an hour.
# Then terminals and signals as they are.
drills: $(VENV)/installed
	cd tests && PYTHONPATH=.. OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m drills.outputs --every $(or $(EVERY),1)
	OMP_NUM_THREADS=1 $(BIN)/python tests/drills/terminals.py

# The newest of everything, to see what breaks upstream. `adapters` is left out while it excludes the newest
# transformers; PEFT is there all the same, so that its tests say what is wrong with it, or run again.
test-newest:
	$(call environment,$(VENV)-newest,$(TORCH))
	$(VENV)-newest/bin/pip $(INSTALL) $(TORCH) --editable '.[docs,export,quantization,test-tools]' peft
	$(VENV)-newest/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# The lower ends of the ranges in pyproject.toml. Exporters need a newer transformers than the rest, so they come second;
# the pages under docs/ are written for the newest.
test-oldest: OLDEST := $(VENV)-oldest
test-oldest:
	$(call environment,$(OLDEST),$(TORCH))
	$(PYTHON) requirements/oldest.py adapters quantization test-tools > $(OLDEST)/first.txt
	$(OLDEST)/bin/pip $(INSTALL) $(TORCH) --constraint $(OLDEST)/first.txt \
		--editable '.[adapters,quantization,test-tools]'
	$(OLDEST)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal --ignore tests/docs -k 'not export'
	$(PYTHON) requirements/oldest.py adapters quantization test-tools export > $(OLDEST)/second.txt
	$(OLDEST)/bin/pip $(INSTALL) $(TORCH) --constraint $(OLDEST)/second.txt \
		--editable '.[adapters,export,quantization,test-tools]'
	$(OLDEST)/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal --ignore tests/docs -k export

# With torchvision, whose image processors transformers then uses, the release of torch that it fits, and timm: 5.5 GB.
test-torchvision: TORCHVISION := --constraint requirements/locked.txt --constraint requirements/torchvision.txt
test-torchvision:
	$(call environment,$(VENV)-torchvision,$(TORCHVISION))
	$(VENV)-torchvision/bin/pip $(INSTALL) $(TORCHVISION) --editable '.[test,timm]'
	$(VENV)-torchvision/bin/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# Damaged and odd inputs for some seconds each: SEED=1 SECONDS_EACH=600 for others, and more.
fuzz: SEED ?= 0
fuzz: SECONDS_EACH ?= 60
fuzz: $(VENV)/installed
	set -e; for drill in tests/drills/fuzz_*.py; do \
		$(BIN)/python "$$drill" --seed $(SEED) --seconds $(SECONDS_EACH); done

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# What is released is built, checked, and used where nothing of the checkout is in reach.
dist:
	rm -rf dist
	$(call environment,$(VENV)-build,$(LOCKED))
	$(VENV)-build/bin/pip $(INSTALL) $(LOCKED) build twine
	$(VENV)-build/bin/python -m build --no-isolation
	$(VENV)-build/bin/twine check --strict dist/*
	$(PYTHON) -m venv --clear $(VENV)-dist
	$(VENV)-dist/bin/pip install -qq $(LOCKED) dist/*.whl
	set -e; outside=$$(mktemp -d); trap 'rm -rf "$$outside"' EXIT; bin=$$(realpath $(VENV)-dist/bin); \
		tar -xzf dist/*.tar.gz -C "$$outside" --strip-components 1; cd "$$outside"; \
		"$$bin/python" examples/quickstart.py; \
		"$$bin/pip" install -qq $(LOCKED) $(BACKEND) hypothesis pytest pytest-xdist; \
		"$$bin/pytest" --numprocesses $(WORKERS) --dist worksteal -k 'package or quickstart or cli'

lock:
	$(call environment,$(VENV)-lock,$(TORCH))
	$(VENV)-lock/bin/pip $(INSTALL) $(TORCH) --editable '.[dev]'
	(echo "# Every package that make installs, as of $$(date +%F), for Python 3.11 and newer. Made by: make lock"; \
		$(VENV)-lock/bin/pip freeze --all --exclude-editable | grep -Ev '^(pip|torch)==') > requirements/locked.txt

benchmarks: $(VENV)/installed
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/compensation.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/deployment.py
	$(BIN)/python benchmarks/families.py
	$(BIN)/python benchmarks/objectives.py

support: $(VENV)/installed
	$(BIN)/python docs/support_table.py docs/models.md

# In the environment of test-torchvision, which has timm.
support-timm:
	$(VENV)-torchvision/bin/python docs/timm_table.py docs/models.md

cards: $(VENV)/installed
	$(BIN)/python model_cards/make.py

$(VENV)/installed: pyproject.toml requirements/locked.txt requirements/torch.txt
	$(call environment,$(VENV),$(LOCKED))
	$(BIN)/pip $(INSTALL) $(LOCKED) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-* build dist site .coverage
