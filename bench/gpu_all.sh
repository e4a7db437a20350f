#!/bin/sh
# Everything that a GPU must prove, measured in one go and written into one JSON: `bench/gpu_all.sh [OPTIONS]`, see --help.
# Needs an NVIDIA GPU, nvcc, torch for CUDA, onnxruntime-gpu[cuda,cudnn], and 45 GB of room for a model of LLaVA-1.5-7B's size.
cd "$(dirname "$0")/.." && exec "${PYTHON:-python3}" -m bench.gpu_all "$@"
