#!/bin/sh
# Everything that a GPU must prove, measured in one go and written into one JSON: `bench/gpu_all.sh [OPTIONS]`, see --help.
# Needs an NVIDIA GPU, torch for CUDA, onnxruntime-gpu[cuda,cudnn], and 45 GB of room for a model of LLaVA-1.5-7B's size.
# Builds the libraries where they are not in plugins/lib: that needs nvcc and, in ONNXRUNTIME_INCLUDE_DIR, onnxruntime_c_api.h.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" -m bench.gpu_all "$@"
