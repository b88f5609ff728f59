# Both targets make their own virtual environment. On a machine with a GPU: make test CONSTRAINTS=/dev/null
VENV ?= .venv
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: quickstart test benchmarks cards support clean

quickstart: $(VENV)/installed
	$(BIN)/python examples/quickstart.py

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

benchmarks: $(VENV)/installed
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/compensation.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/deployment.py
	$(BIN)/python benchmarks/families.py
	$(BIN)/python benchmarks/objectives.py

support: $(VENV)/installed
	$(BIN)/python docs/support_table.py README.md

cards: $(VENV)/installed
	$(BIN)/python model_cards/make.py

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
