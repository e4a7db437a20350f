# `make demo` and `make test` are all a newcomer needs; both install what they need into $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO_BUNDLE := bundles/demo
QWEN_BUNDLE := bundles/demo-qwen
SERVE_BUNDLE := bundles/demo-serve

# TensorRT's Python bindings, without TensorRT, and CUDA's, without a driver: what plugin and engines must fit.
FUZZ_CASES ?= 100000
BINDINGS := build/bindings/10.16.1.11 build/bindings/11.4.0.106
BINDINGS_JETPACK_6 := build/bindings/10.3.0
BINDINGS_CUDA := build/cuda-bindings/12.9.10 build/cuda-bindings/13.2.0
# Before 12.8 the bindings were part of cuda-python itself; this is the version for JetPack 6.
BINDINGS_CUDA_12_6 := build/cuda-bindings/12.6.2.post1
# Triton's client has its configs as protobuf; what else it needs is older than ours.
TRITON := build/tritonclient/2.73.0

.PHONY: fuzz tensorrt demo demo-qwen serve soak test check lint types imports bindings cuda12 bench bench-prefill bench-qwen bench-selector bench-serve bench-startup evidence clean help

help:  ## Show this list.
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(VENV)/.demo  ## Export the demo checkpoint with 90 % pruning and ask it three questions.
	$(BIN)/python -m export llava --prune 0.9 --output $(DEMO_BUNDLE) --force
	$(BIN)/python -m divprune_edge.demo $(DEMO_BUNDLE)

demo-qwen: $(VENV)/.demo  ## Export the demo of Qwen3-VL's architecture, and ask it about an image and a clip.
	$(BIN)/python -m export --model models/demo/qwen3-vl-checkpoint --keep 26 --frames 4 --output $(QWEN_BUNDLE) --force
	$(BIN)/python -m divprune_edge.demo $(QWEN_BUNDLE)

serve: $(VENV)/.serve  ## Export the demo with a few budgets and serve it, with a page to try it, at http://127.0.0.1:8000/.
	test -d $(SERVE_BUNDLE) || { $(BIN)/python -m export llava --prune 0.9 --dialect onnxruntime --output $(SERVE_BUNDLE) && \
	    for keep in 29 144 288; do $(BIN)/python -m export selector $(SERVE_BUNDLE) --keep $$keep; done; }
	$(BIN)/python -m runtime serve $(SERVE_BUNDLE) --warm-up

test: $(VENV)/.dev  ## Run all tests (installs torch and transformers).
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

check: lint types imports  ## Lint, types and import rules.

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy -p divprune_edge

imports: $(VENV)/.dev
	$(BIN)/lint-imports

bindings: $(BINDINGS) $(BINDINGS_JETPACK_6) $(BINDINGS_CUDA) $(BINDINGS_CUDA_12_6) $(TRITON)  ## Fetch TensorRT's, CUDA's and Triton's Python bindings for the tests (x86-64).

$(BINDINGS): build/bindings/%: | $(VENV)/.dev
	$(PIP) install --quiet --no-deps --target $@.partial tensorrt-cu13-bindings==$*
	mv $@.partial $@

$(BINDINGS_JETPACK_6): build/bindings/%: | $(VENV)/.dev
	$(PIP) install --quiet --no-deps --target $@.partial tensorrt-cu12-bindings==$*
	mv $@.partial $@

$(BINDINGS_CUDA): build/cuda-bindings/%: | $(VENV)/.dev
	$(PIP) install --quiet --no-deps --target $@.partial cuda-bindings==$* cuda-pathfinder
	mv $@.partial $@

$(BINDINGS_CUDA_12_6): build/cuda-bindings/%: | $(VENV)/.dev
	$(PIP) install --quiet --no-deps --target $@.partial cuda-python==$*
	mv $@.partial $@

$(TRITON): build/tritonclient/%: | $(VENV)/.dev
	$(PIP) install --quiet --no-deps --target $@.partial tritonclient==$*
	mv $@.partial $@

cuda12: build/cuda-12.6  ## Fetch CUDA 12.6's runtime compiler for the test that JetPack 6 can build the kernels (x86-64).

build/cuda-12.6: | $(VENV)/.dev
	$(PIP) install --quiet --no-deps --target $@.partial nvidia-cuda-nvrtc-cu12==12.6.85 \
	    nvidia-cuda-nvcc-cu12==12.6.85 nvidia-cuda-runtime-cu12==12.6.77
	mv $@.partial $@

fuzz: $(VENV)/.dev  ## Damage FUZZ_CASES inputs of each class (hours) and write what came of it into docs/security.md.
	$(BIN)/python tests/fuzz/run.py --cases $(FUZZ_CASES) --json bench/results/fuzz.json
	$(BIN)/python tests/fuzz/table.py

tensorrt: $(VENV)/.dev  ## Parse and build every graph with TensorRT-RTX, which needs no GPU for it (4,785 builds).
	$(BIN)/python tests/tensorrt_matrix.py

bench-selector: $(VENV)/.dev  ## Measure the selector: the kernel on a GPU, the CPU forms without one.
	$(BIN)/python -m bench.selector --json bench/results/selector.json

bench: build/venv-bench/.done  ## Measure speed side by side with transformers, OpenVINO, onnxruntime-genai, llama.cpp (20 minutes).
	build/venv-bench/bin/python -m bench.speed --json bench/results/speed.json --chart docs/images/speed.svg

bench-serve: build/venv-bench/.done  ## Measure servers under load: pruned, unpruned, llama.cpp's (11 minutes).
	build/venv-bench/bin/python -m bench.serve --json bench/results/serve.json

# An environment of its own: the peers bring what the tests should not need.
build/venv-bench/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/venv-bench
	build/venv-bench/bin/python -m pip install --progress-bar on -c constraints.txt -e '.[bench]'
	@touch $@

bench-prefill: $(VENV)/.dev  ## Measure pruned against unpruned prefill of a 0.4B-class model (5 minutes).
	$(BIN)/python -m bench.prefill --json bench/results/prefill.json

bench-qwen: $(VENV)/.dev  ## Measure the first token of a Qwen3-VL-2B, pruned and not (6 minutes, 10 GB of memory, 9 of disk).
	$(BIN)/python -m bench.qwen --json bench/results/qwen.json

bench-startup: $(VENV)/.demo  ## Measure the start of the command line: the help texts and a question.
	test -d $(DEMO_BUNDLE) || $(BIN)/python -m export llava --prune 0.9 --output $(DEMO_BUNDLE)
	$(BIN)/python -m bench.startup $(DEMO_BUNDLE)

soak: $(VENV)/.dev  ## Serve the demo under mixed load, with faults, for 30 minutes.
	test -d $(SERVE_BUNDLE) || $(BIN)/python -m export llava --prune 0.9 --dialect onnxruntime --output $(SERVE_BUNDLE)
	$(BIN)/python -m bench.soak $(SERVE_BUNDLE) --minutes 30 --json bench/results/soak.json

evidence: $(VENV)/.dev  ## Write the tables of what is known from docs/evidence.toml into README and docs.
	$(BIN)/python docs/generate_evidence.py

clean:  ## Remove what the other targets made.
	rm -rf build bundles $(VENV)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the demo needs (no torch) into $(VENV) ..."
	$(PIP) install --progress-bar on -c constraints.txt -e '.[cpu,export]'
	@touch $@

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the server needs (no torch) into $(VENV) ..."
	$(PIP) install --progress-bar on -c constraints.txt -e '.[cpu,export,serve]'
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the tests need (torch and transformers included) into $(VENV) ..."
	$(PIP) install --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.serve
