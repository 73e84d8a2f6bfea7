# Two commands matter: `make demo` and `make test`. Each works alone on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(shell find runtime/csrc runtime/CMakeLists.txt -type f)
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-triton test-milvus gpu-check check format clean

help:
	@echo "make demo    train, export, index and search real images; writes demo/report.html"
	@echo "make test    all tests"
	@echo "make test-triton  the tests that need a Triton Inference Server, which it installs (60 MB)"
	@echo "make test-milvus  the tests of interop with Milvus, with Milvus Lite, which it installs (300 MB)"
	@echo "make test-ray  the cluster on two real Ray nodes (330 MB; Linux, root)"
	@echo "make gpu-check  check and time the CUDA search on this machine's GPU, in seven minutes"
	@echo "make check   ruff, ruff format, mypy"
	@echo "make test-faults           the index under crashes, damage and hostile files, in full"
	@echo "make soak    a minute of searches over HTTP while the index changes and decoders die"
	@echo "make test-asan             the search core under the sanitizers"
	@echo "make test-avx512-emulated  its AVX-512 kernels on any CPU, through SIMDe"
	@echo "make docs    the documentation as a site, in build/site"
	@echo "make bench   latency of encoding and searching on this machine; 30 minutes, alone"
	@echo "make dist    sdist and wheel, in dist/; make test-dist installs and tries them"
	@echo "make lock    serve.lock, the server's dependencies with hashes; make sbom lists them"
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

# Interop with Milvus, against Milvus Lite 2.5, the last that knows binary vectors; it brings pandas
# and 300 MB, so it lives apart.
test-milvus: setup build/milvus/.installed
	PYTHONPATH=$(CURDIR)/build/milvus $(BIN)/python -m pytest tests/runtime/interop/test_milvus.py

build/milvus/.installed:
	$(BIN)/pip install --quiet --target build/milvus 'pymilvus>=2.6,<3' milvus-lite==2.5.1 'setuptools<81'
	touch $@

# Two Ray nodes in network namespaces of their own; wants an idle machine.
.PHONY: test-ray
test-ray: setup
	$(BIN)/pip install --quiet --editable '.[ray]'
	METAH_TEST_RAY=1 $(BIN)/python -m pytest -s tests/runtime/cluster

# On a machine with an NVIDIA GPU: needs numpy and pycuda or cuda-bindings in $(PYTHON), and nvcc
# unless GPU_CHECK=--build ran before; installs and downloads nothing. GPU_CHECK=--simulate runs the
# same steps on the CPU.
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
	rm -rf $(VENV) $(VENV)-triton build build-* dist demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Needs strace, and root for mounts and other users; what is absent is skipped with a reason.
.PHONY: test-faults
test-faults: setup
	-$(BIN)/pip install --quiet atheris
	$(BIN)/python -m pytest tests/faults tests/runtime/index --full

# The search core under the sanitizers, and its AVX-512 kernels through SIMDe (libsimde-dev).
SEARCH_TESTS := tests/runtime/test_search.py tests/runtime/test_search_threads.py
NATIVE_CMAKE = $(BIN)/pip install --quiet cmake ninja 'nanobind>=3.1' && \
	$(BIN)/cmake -S runtime -B $(1) -G Ninja -DCMAKE_BUILD_TYPE=Release \
	-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	-Dnanobind_DIR=$$($(BIN)/python -m nanobind --cmake_dir) $(2) && $(BIN)/ninja -C $(1) _native
ON_BUILD = $(BIN)/python -m pytest -p tests.runtime.native_under_test $(SEARCH_TESTS)

.PHONY: test-asan test-avx512-emulated
test-asan: setup
	$(call NATIVE_CMAKE,build-asan,-DMETAH_SANITIZE=ON)
	METAH_NATIVE=build-asan ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	$(ON_BUILD)

test-avx512-emulated: setup
	@if ! echo '#include <simde/x86/avx512.h>' | $(CXX) -E -x c++ - >/dev/null 2>&1; then \
	    echo "skipped: no SIMDe headers; fix: apt-get install libsimde-dev"; \
	else \
	    ($(call NATIVE_CMAKE,build-avx512,-DMETAH_EMULATE_AVX512=ON)) && \
	    METAH_NATIVE=build-avx512 METAH_SIMD=avx512 $(ON_BUILD); \
	fi

# The site; a broken link or an unknown name in it is an error.
.PHONY: docs
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Encoding and searching, timed; writes BENCH_OUT.jsonl and .html and the table of README.md.
BENCH_OUT ?= benchmarks/results/latency-zen5
.PHONY: bench
bench: setup
	$(BIN)/python benchmarks/latency.py --out $(BENCH_OUT) $(BENCH)

# sdist and wheel; then both as a user gets them: a new environment without compiler or sources.
.PHONY: dist test-dist
dist: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

test-dist: dist
	$(BIN)/python tests/release/try_wheel.py dist

# What the runtime and its server need, with hashes; the list of parts (CycloneDX) of this install.
.PHONY: lock sbom
lock: setup
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/python tests/release/lock.py $(BIN)/pip-compile serve.lock

sbom: setup
	$(BIN)/pip install --quiet cyclonedx-bom
	$(BIN)/cyclonedx-py requirements serve.lock --pyproject pyproject.toml --of JSON --output-file build/sbom.json

.PHONY: soak
soak: setup
	$(BIN)/python -m pytest tests/runtime/serve/test_soak.py --soak-seconds 60
