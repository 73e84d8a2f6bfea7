# Two commands matter: `make demo` and `make test`. Each works alone on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(shell find runtime/csrc runtime/CMakeLists.txt -type f)
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-triton gpu-check check format clean

help:
	@echo "make demo    train, export, index and search real images; writes demo/report.html"
	@echo "make test    all tests"
	@echo "make test-triton  the tests that need a Triton Inference Server, which it installs (60 MB)"
	@echo "make gpu-check  check and time the CUDA search on this machine's GPU, in nine minutes"
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

test-triton: setup $(VENV)-triton/.installed
	$(BIN)/python -m pytest tests/export/test_triton.py

# The server's Python back end needs numpy 1; it lives apart from everything else.
$(VENV)-triton/.installed:
	$(PYTHON) -m venv $(VENV)-triton
	PIP_CONSTRAINT= $(VENV)-triton/bin/pip install --quiet --no-deps nvidia-pytriton==0.7.0
	PIP_CONSTRAINT= $(VENV)-triton/bin/pip install --quiet 'numpy<2' onnxruntime==1.32.0
	touch $@

# On a machine with an NVIDIA GPU: needs numpy, nvcc and one of pycuda, cuda-bindings, cupy in
# $(PYTHON); installs and downloads nothing. GPU_CHECK=--simulate runs the same steps on the CPU.
gpu-check:
	METAH_CACHE=$(CURDIR)/build/cache $(PYTHON) benchmarks/gpu_check.py $(GPU_CHECK)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV)-triton build dist demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
