#!/usr/bin/env bash
# Installs the bundle beside this script on a Jetson: checks the board, makes a Python environment that sees JetPack's
# own TensorRT, builds the plugin and the engines, and asks a question whose answer is known.
#
# It never uses sudo and changes nothing outside its folder. Every step is printed before it runs; what is done already
# is not done again, so after a failure the same command goes on.
set -euo pipefail

usage() {
  cat <<'END'
usage: ./install.sh [--dry-run] [--yes] [--prefix DIR] [--wheelhouse DIR] [--python PATH]

  --dry-run          print every step and run none; works on any machine
  --yes              do not ask before installing
  --prefix DIR       where to install (default: this folder; elsewhere the bundle is linked or copied there)
  --wheelhouse DIR   install Python packages from this folder, without a network (default: ./wheelhouse, if there)
  --python PATH      JetPack's Python (default: /usr/bin/python3)
END
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
. "$here/package.env"

dry=false
yes=false
prefix=$here
wheelhouse=
python=/usr/bin/python3
number=0
total=16
partial=
LC_ALL=C
export LC_ALL
# Packages of the user's home folder would come before JetPack's.
export PYTHONNOUSERSITE=1

# --- how it speaks ----------------------------------------------------------------------------------------------

fail() { # MESSAGE [EXIT CODE]: one sentence: what is wrong, and what to do
  printf 'error: %s\n' "$1" >&2
  exit "${2:-2}"
}

note() { printf '  note: %s\n' "$1"; }

step() {
  number=$((number + 1))
  printf '\n[%d/%d] %s\n' "$number" "$total" "$1"
}

shown() { # COMMAND…: print it as it could be typed
  local word
  printf '  $'
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=+@%,\>-]*) printf " '%s'" "$word" ;;
      *) printf ' %s' "$word" ;;
    esac
  done
  printf '\n'
}

run() { # COMMAND…: print it, and run it unless this is a dry run
  shown "$@"
  $dry || "$@"
}

look() { # VARIABLE COMMAND…: print the command and keep what it prints, nothing if it fails
  local name=$1 output=
  shift
  shown "$@"
  $dry || output=$("$@" 2>/dev/null) || output=
  printf -v "$name" '%s' "$output"
}

newer_or_same() { # HAVE WANT: compare versions by their first two numbers
  local have_major=${1%%.*} want_major=${2%%.*} have_minor want_minor
  have_minor=$(printf '%s.0' "$1" | cut -d. -f2)
  want_minor=$(printf '%s.0' "$2" | cut -d. -f2)
  [ "$have_major" -gt "$want_major" ] || { [ "$have_major" -eq "$want_major" ] && [ "$have_minor" -ge "$want_minor" ]; }
}

mib() { printf '%s MiB' "$(($1 / 1048576))"; }

# --- what the board must be -------------------------------------------------------------------------------------

check_files() {
  step "Files: every file of the package is the one that was packed"
  if ! $dry && [ -f "$prefix/.files-checked" ] && [ "$(cat "$prefix/.files-checked")" = "$(sum_of SHA256SUMS)" ]; then
    note "checked before"
    return
  fi
  run sha256sum --check --quiet SHA256SUMS \
    || fail "The package is damaged (the files above differ from SHA256SUMS): copy the archive to the board again."
}

check_architecture() {
  step "Architecture: a Jetson's"
  local machine
  look machine uname -m
  $dry && return
  [ "$machine" = aarch64 ] \
    || fail "This machine is '$machine', but the package is for a Jetson (aarch64): run install.sh on the board, or look at its steps here with --dry-run."
}

check_jetpack() {
  step "JetPack: $JETPACK (Jetson Linux $L4T)"
  local version line
  look version dpkg-query -W -f '${Version}' nvidia-l4t-core
  look line head -n 1 /etc/nv_tegra_release
  $dry && return
  if [ -z "$version" ] && [[ $line =~ R([0-9]+).*REVISION:\ ([0-9.]+) ]]; then
    version=${BASH_REMATCH[1]}.${BASH_REMATCH[2]}
  fi
  version=${version%%-*}
  [ -n "$version" ] \
    || fail "No Jetson Linux was found (neither the package nvidia-l4t-core nor /etc/nv_tegra_release): flash the board with JetPack $JETPACK first."
  if [ "${version%%.*}" != "$L4T" ]; then
    if [ -n "$OTHER_L4T" ] && [ "${version%%.*}" = "$OTHER_L4T" ]; then
      fail "The board has Jetson Linux $version, but the package is for JetPack $JETPACK (Jetson Linux $L4T): make it again with '--target $OTHER_TARGET', or flash JetPack $JETPACK."
    fi
    fail "The board has Jetson Linux $version, but the package is for JetPack $JETPACK (Jetson Linux $L4T): flash JetPack $JETPACK${OTHER_JETPACK:+, or JetPack $OTHER_JETPACK and make the package with '--target $OTHER_TARGET'}."
  fi
  printf '  Jetson Linux %s\n' "$version"
}

check_cuda() {
  step "CUDA: the compiler of CUDA ${CUDA%%.*}"
  local text version
  nvcc=${CUDACXX:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
  look text "$nvcc" --version
  $dry && return
  [ -n "$text" ] \
    || fail "nvcc was not found at '$nvcc': install CUDA's compiler with 'sudo apt install nvidia-jetpack' (or nvidia-cuda-dev), or name it with CUDACXX=/path/to/nvcc."
  [[ $text =~ release\ ([0-9]+\.[0-9]+) ]] \
    || fail "'$nvcc' does not behave like nvcc: name the right one with CUDACXX=/path/to/nvcc."
  version=${BASH_REMATCH[1]}
  [ "${version%%.*}" = "${CUDA%%.*}" ] \
    || fail "nvcc is of CUDA $version, but the package is for CUDA $CUDA of JetPack $JETPACK: name JetPack's own with CUDACXX=/usr/local/cuda-$CUDA/bin/nvcc."
  export CUDACXX=$nvcc
  printf '  nvcc %s\n' "$version"
}

check_tensorrt() {
  step "TensorRT: $TENSORRT or newer, its headers and its Python bindings"
  local library headers found version where
  look library dpkg-query -W -f '${Version}' "libnvinfer${TENSORRT%%.*}"
  look headers dpkg-query -W -f '${Version}' libnvinfer-headers-dev
  look found "$python" -c 'import tensorrt; print(tensorrt.__version__, tensorrt.__file__)'
  $dry && return
  [ -n "$found" ] \
    || fail "Python sees no TensorRT (library: ${library:-none}): install it with 'sudo apt install nvidia-jetpack' (or python3-libnvinfer), and see that '$python' is JetPack's Python."
  version=${found%% *}
  where=${found#* }
  newer_or_same "$version" "$TENSORRT" \
    || fail "The board has TensorRT $version, but the bundle needs $TENSORRT or newer: flash JetPack $JETPACK${OTHER_TARGET:+, or export for another target}."
  case $where in
    */dist-packages/*) ;;
    *) note "this TensorRT is not JetPack's ('$where'); one from a package registry does not know a Jetson's GPU" ;;
  esac
  [ -n "$headers" ] || [ -n "${TENSORRT_INCLUDE_DIR:-}" ] \
    || fail "TensorRT's headers are missing, which the plugin is built with: install them with 'sudo apt install libnvinfer-headers-dev', or name their folder with TENSORRT_INCLUDE_DIR."
  case $version in
    "$TENSORRT" | "$TENSORRT".*) ;;
    *)
      [ -z "$BUNDLE_TARGET" ] \
        || fail "The board has TensorRT $version, but the bundle was exported for $TENSORRT of JetPack $JETPACK: export it for what the board has${OTHER_TARGET:+ ('--target $OTHER_TARGET' is JetPack $OTHER_JETPACK)}, or with --dialect decomposed and no --target."
      note "TensorRT $version is newer than what the package was made for ($TENSORRT); going on"
      ;;
  esac
  printf '  TensorRT %s\n' "$version"
}

check_tools() {
  step "Build tools: cmake and a C++ compiler"
  local cmake compiler
  look cmake cmake --version
  look compiler c++ --version
  $dry && return
  [ -n "$cmake" ] || fail "cmake is missing: install it with 'sudo apt install cmake'."
  [ -n "$compiler" ] || fail "A C++ compiler is missing: install it with 'sudo apt install build-essential'."
}

check_python() {
  step "Python: $PYTHON_VERSION, with venv"
  local version venv
  look version "$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])'
  look venv "$python" -c 'import ensurepip, venv; print("yes")'
  $dry && return
  [ "$version" = "$PYTHON_VERSION" ] \
    || fail "'$python' is Python ${version:-(it does not run)}, but JetPack $JETPACK and its TensorRT bindings have $PYTHON_VERSION: name it with --python."
  [ "$venv" = yes ] || fail "Python cannot make environments: install 'sudo apt install python3-venv'."
}

check_disk() {
  local needed free folder=$prefix
  # Engines repeat the weights; the Python environment and the build take the rest.
  needed=$((BUNDLE_BYTES + BUNDLE_BYTES / 8 + 1073741824))
  step "Disk: $(mib "$needed") for engines and packages"
  while [ ! -d "$folder" ]; do folder=$(dirname -- "$folder"); done
  look free df -Pk "$folder"
  $dry && return
  free=$(printf '%s\n' "$free" | awk 'NR == 2 { print $4 }')
  [ -n "$free" ] || { note "df does not say how much is free; going on"; return; }
  [ $((free * 1024)) -ge "$needed" ] \
    || [ -d "$prefix/bundle/engines" ] \
    || fail "'$folder' has $(mib $((free * 1024))) free, but engines and packages need $(mib "$needed"): free some, or install elsewhere with --prefix DIR."
}

check_memory() {
  local text total_bytes available swap wanted
  # TensorRT holds the weights as read, as laid out for the GPU, and as written; the builder asks for as much. The rest
  # is room for the system.
  wanted=$((3 * LARGEST_GRAPH_BYTES + 1073741824))
  step "Memory: some $(mib "$wanted") with swap while the largest engine is built"
  look text free -b
  $dry && return
  total_bytes=$(printf '%s\n' "$text" | awk '$1 == "Mem:" { print $2 }')
  available=$(printf '%s\n' "$text" | awk '$1 == "Mem:" { print $7 }')
  swap=$(printf '%s\n' "$text" | awk '$1 == "Swap:" { print $4 }')
  [ -n "$total_bytes" ] && [ -n "$available" ] || { note "free does not say how much is free; going on"; return; }
  printf '  %s of memory, %s available, %s of swap free\n' "$(mib "$total_bytes")" "$(mib "$available")" "$(mib "${swap:-0}")"
  [ "$total_bytes" -gt "$LARGEST_GRAPH_BYTES" ] \
    || fail "The board has $(mib "$total_bytes") of memory, but the largest graph alone has $(mib "$LARGEST_GRAPH_BYTES") of weights: export with a smaller --precision, or use a board with more memory."
  [ $((available + ${swap:-0})) -ge "$wanted" ] \
    || note "this may not suffice: stop the desktop ('sudo systemctl isolate multi-user.target') and add a swap file (README.txt) if the build is killed"
}

check_power() {
  step "Power mode: advice only, nothing is changed"
  local mode
  look mode nvpmodel -q
  $dry && return
  if [ -z "$mode" ]; then
    note "the power mode could not be read; 'sudo nvpmodel -q' shows it"
    return
  fi
  printf '%s\n' "$mode" | sed 's/^/  /'
  case $mode in
    *MAXN*) ;;
    *) note "this is not the board's fastest mode: 'grep POWER_MODEL /etc/nvpmodel.conf' lists them, 'sudo nvpmodel -m ID' changes it" ;;
  esac
  note "clocks rise with the load; 'sudo jetson_clocks' fixes them at the mode's highest, which measurements want"
}

confirm() {
  $dry || $yes && return
  [ -t 0 ] || fail "There is nobody to ask whether to install into '$prefix': say --yes, or --dry-run to look only."
  local answer
  read -r -p "Install $MODEL into '$prefix'? [y/N] " answer
  case $answer in
    y | Y | yes) ;;
    *) fail "Nothing was installed." 1 ;;
  esac
}

# --- what is installed ------------------------------------------------------------------------------------------

sum_of() { sha256sum "$1" | cut -c 1-64; }

clean_up() { # what was begun and not finished
  if ! $dry && [ -n "$partial" ]; then rm -rf -- "$partial"; fi
}

place_bundle() {
  step "Bundle: $prefix/bundle"
  if [ "$prefix" != "$here" ] && [ ! -d "$prefix/bundle" ]; then
    run mkdir -p "$prefix" || fail "'$prefix' cannot be made: choose another --prefix."
    partial=$prefix/.bundle.partial
    run rm -rf "$partial"
    # Hard links cost nothing; across file systems it has to be a copy.
    if ! run cp -al "$here/bundle" "$partial" 2>/dev/null; then
      run rm -rf "$partial"
      run cp -a "$here/bundle" "$partial" || fail "The bundle could not be copied to '$prefix': free some space there."
    fi
    run mv "$partial" "$prefix/bundle"
    partial=
  else
    note "already there"
  fi
  $dry || sum_of SHA256SUMS >"$prefix/.files-checked"
}

make_environment() {
  step "Environment: a virtual one that sees JetPack's packages"
  local stamp=
  $dry || stamp=$(sha256sum requirements.txt "wheels/$WHEEL" | sha256sum | cut -c 1-64)
  if ! $dry && [ -f "$prefix/venv/.complete" ] && [ "$(cat "$prefix/venv/.complete")" = "$stamp" ]; then
    note "already there"
    number=$((number + 1))
    printf '\n[%d/%d] %s\n' "$number" "$total" "Packages: the runtime and what it needs"
    note "already there"
    return
  fi
  partial=$prefix/venv
  run rm -rf "$partial"
  run "$python" -m venv --system-site-packages "$partial" \
    || fail "The environment could not be made: see the message above; 'sudo apt install python3-venv' is what it needs."
  step "Packages: the runtime and what it needs"
  local source=()
  if [ -z "$wheelhouse" ] && [ -d "$here/wheelhouse" ]; then wheelhouse=$here/wheelhouse; fi
  if [ -n "$wheelhouse" ]; then source=(--no-index --find-links "$wheelhouse"); fi
  run "$partial/bin/python" -m pip install --disable-pip-version-check ${source[@]+"${source[@]}"} \
    --requirement requirements.txt "wheels/$WHEEL" \
    || fail "pip could not install the packages: connect the board to a network, or bring them in a folder and name it with --wheelhouse (README.txt)."
  run "$partial/bin/python" -c 'import tensorrt, numpy, polygraphy, cuda.bindings.runtime, divprune_edge.runtime.pipeline; print("  TensorRT", tensorrt.__version__, "NumPy", numpy.__version__)' \
    || fail "The environment does not see everything it needs (the last line above says what): is '$python' JetPack's Python?"
  $dry || printf '%s\n' "$stamp" >"$partial/.complete"
  partial=
}

build_plugin() {
  step "Plugin: the selection kernels, compiled for this GPU"
  local info
  look info "$venv" -m plugins info
  if [[ $info == *"not built in"* ]] || [ -z "$info" ]; then
    run "$venv" -m plugins build \
      || fail "The plugin was not built: the message above says why; '$venv -m plugins build --verbose' shows the compiler's output." 1
    look info "$venv" -m plugins info
    $dry && return
    [[ $info == *architectures* && $info != *"not built in"* ]] \
      || fail "The plugin was built without TensorRT's headers: install them with 'sudo apt install libnvinfer-headers-dev', or name their folder with TENSORRT_INCLUDE_DIR." 1
  else
    note "already there"
  fi
}

build_engines() {
  step "Engines: three graphs into three engines; this takes a while"
  # Finds the engines of this device and this plugin and checks them, without loading any.
  local check='import sys; from divprune_edge.runtime.bundle import Bundle; from divprune_edge.runtime.engines.opening import open_engines; bundle = Bundle.open(sys.argv[1]); open_engines(bundle, bundle.selector()); print("yes")'
  local there
  look there "$venv" -c "$check" "$prefix/bundle"
  if [ "$there" = yes ]; then
    note "already there"
    return
  fi
  run "$venv" -m runtime build "$prefix/bundle" \
    || fail "The engines were not built: the message above says why; if it was killed, add swap (README.txt) and run install.sh again." 1
}

self_test() {
  step "Self-test: a question with a known answer"
  local question=()
  mapfile -t question < <(sed -n 's/^  "question": "\(.*\)",$/\1/p; s/^  "max_tokens": \([0-9]*\),$/\1/p' selftest/expected.json)
  shown "$venv" -m runtime ask "$prefix/bundle" "${question[0]}" --image selftest/picture.png --backend tensorrt --json --max-tokens "${question[1]}" '>' "$prefix/selftest.json"
  $dry || "$venv" -m runtime ask "$prefix/bundle" "${question[0]}" --image selftest/picture.png --backend tensorrt --json \
    --max-tokens "${question[1]}" >"$prefix/selftest.json" \
    || fail "The board gives no answer: the message above says why." 1
  run "$venv" selftest/check_answer.py selftest/expected.json "$prefix/selftest.json" \
    || fail "The self-test failed: build the engines again ('rm -r $prefix/bundle/engines', then install.sh), and compare with '--backend cpu' where ONNX Runtime is installed." 1
}

finish() {
  printf '\n'
  if $dry; then
    printf 'Dry run: nothing was run.\n'
    return
  fi
  printf 'Installed. Ask: %s -m runtime ask %s --image IMAGE --backend tensorrt "What is in the picture?"\n' "$venv" "$prefix/bundle"
}

# --- from the command line to the answer ------------------------------------------------------------------------

while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry=true ;;
    --yes) yes=true ;;
    --prefix | --wheelhouse | --python)
      [ $# -gt 1 ] || fail "$1 needs a value; see './install.sh --help'."
      case $1 in
        --prefix) prefix=$(realpath -m -- "$2") ;;
        --wheelhouse) wheelhouse=$(realpath -m -- "$2") ;;
        --python) python=$2 ;;
      esac
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "There is no option '$1'; see './install.sh --help'." ;;
  esac
  shift
done
[ -z "$wheelhouse" ] || $dry || [ -d "$wheelhouse" ] || fail "There is no folder '$wheelhouse': --wheelhouse names one with wheels."

cd "$here"
venv=$prefix/venv/bin/python
trap clean_up EXIT
printf '%s (%s) for %s\n' "$MODEL" "$PRECISION" "$TARGET_TITLE"

check_files
check_architecture
check_jetpack
check_cuda
check_tensorrt
check_tools
check_python
check_disk
check_memory
check_power
confirm
place_bundle
make_environment
build_plugin
build_engines
self_test
finish
