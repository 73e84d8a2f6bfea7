# Two commands matter: `make demo` and `make test`. Each works alone on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(shell find runtime/csrc runtime/CMakeLists.txt -type f)
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test check format clean

help:
	@echo "make demo    train, export, index and search real images; writes demo/report.html"
	@echo "make test    all tests"
	@echo "make check   ruff, ruff format, mypy"
	@echo "make format  let ruff rewrite what it can"
	@echo "make clean   remove everything that make made"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev,bench]'
	touch $@

demo: setup
	$(BIN)/python -m metah_export.demo --out demo

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
