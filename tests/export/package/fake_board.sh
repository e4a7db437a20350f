#!/usr/bin/env bash
# A FAKE Jetson for the tests of install.sh: under the names uname, dpkg-query, head, nvcc, cmake, c++, df, free,
# nvpmodel, python3 and, in the environment that it pretends to make, python. It answers as a board would, or as the
# variables FAKE_… say, and writes every call to FAKE_LOG. Nothing of it has anything to do with TensorRT.
name=$(basename -- "$0")
[ -z "${FAKE_LOG:-}" ] || printf '%s %s\n' "$name" "$*" >>"$FAKE_LOG"

answer() { # VALUE: print it; "none" stands for a tool that fails
  [ "$1" != none ] || exit 1
  printf '%s\n' "$1"
}

case "$name $*" in
  "uname -m") answer "${FAKE_MACHINE:-aarch64}" ;;
  "dpkg-query "*nvidia-l4t-core) answer "${FAKE_L4T:-36.4.3-20250107174145}" ;;
  "dpkg-query "*libnvinfer-headers-dev) answer "${FAKE_HEADERS:-10.3.0.30-1+cuda12.5}" ;;
  "dpkg-query "*) answer "10.3.0.30-1+cuda12.5" ;;
  "head -n 1 /etc/nv_tegra_release") answer "${FAKE_RELEASE:-none}" ;;
  "nvcc --version") answer "${FAKE_NVCC:-Cuda compilation tools, release 12.6, V12.6.68}" ;;
  "cmake --version") answer "${FAKE_CMAKE:-cmake version 3.22.1}" ;;
  "c++ --version") answer "${FAKE_COMPILER:-c++ (Ubuntu 11.4.0)}" ;;
  "df -Pk "*) printf 'Filesystem 1024-blocks Used Available Capacity Mounted\n/dev/fake 1 1 %s 1%% /\n' "${FAKE_DISK:-99999999}" ;;
  "free -b")
    printf '       total used free shared buff available\nMem: %s 1 1 1 1 %s\nSwap: 1 0 %s\n' \
      "${FAKE_MEMORY:-65000000000}" "${FAKE_AVAILABLE:-60000000000}" "${FAKE_SWAP:-0}"
    ;;
  "nvpmodel -q") answer "${FAKE_POWER:-NV Power Mode: MAXN}" ;;
  "python3 -c import tensorrt"*)
    answer "${FAKE_TENSORRT:-10.3.0 /usr/lib/python3.10/dist-packages/tensorrt/__init__.py}"
    ;;
  "python3 -c import sys"*) answer "${FAKE_PYTHON:-3.10}" ;;
  "python3 -c import ensurepip"*) answer "${FAKE_VENV:-yes}" ;;
  "python3 -m venv --system-site-packages "*)
    [ "${FAKE_MAKE_VENV:-}" != none ] || exit 1
    mkdir -p "$4/bin"
    ln -s "$(realpath -- "$0")" "$4/bin/python"
    ;;
  "python -m pip install "*) [ "${FAKE_PIP:-}" != none ] || exit 1 ;;
  "python -c import tensorrt"*) answer "${FAKE_IMPORTS:-  TensorRT 10.3.0 NumPy 1.26.4}" ;;
  "python -m plugins build") [ "${FAKE_BUILD:-}" != none ] && touch "$(dirname -- "$0")/plugin" ;;
  "python -m plugins info")
    [ -f "$(dirname -- "$0")/plugin" ] || exit 1
    printf 'architectures  sm_87\nTensorRT       %s\n' "${FAKE_PLUGIN:-10.3.0}"
    ;;
  "python -c import sys; from divprune_edge.runtime.bundle"*) [ -d "$3/engines" ] && echo yes ;;
  "python -m runtime build "*)
    if [ "${FAKE_ENGINES:-}" = none ]; then
      printf 'error[memory-too-small]: Building the largest engine takes at least 1 MiB.\n' >&2
      exit 2
    fi
    mkdir "$4/engines"
    ;;
  "python -m runtime ask "*) answer "${FAKE_ANSWER:?}" ;;
  "python selftest/check_answer.py "*) exec "${REAL_PYTHON:?}" "$@" ;;
  *)
    printf 'fake board: no answer to: %s %s\n' "$name" "$*" >&2
    exit 99
    ;;
esac
