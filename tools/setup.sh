#!/bin/sh
# Make a virtual environment with jseg in it: sh tools/setup.sh .venv
# Finds g++, a Python from 3.9 to 3.14 and its headers; as root on Debian or Ubuntu it installs what is missing,
# otherwise it prints the command and stops. Nothing is fetched but packages. PYTHON=/path/to/python chooses the
# interpreter.
set -eu
venv=${1:-.venv}
fits='import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 14))'

find_python() {
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3.10 python3.9 python3.14 python3}; do
        if "$name" -c "$fits" 2>/dev/null; then python=$name; return; fi
    done
    python=
}

find_python
if [ -n "${PYTHON:-}" ] && [ -z "$python" ]; then
    echo "jseg: PYTHON=$PYTHON is not a Python from 3.9 to 3.14" >&2
    exit 2
fi
missing=""
compiler=${cc_path:-g++}
command -v "$compiler" >/dev/null 2>&1 || missing="$missing g++"
if [ -z "$python" ] && command -v python3 >/dev/null 2>&1; then
    echo "jseg: $(python3 --version) is not one that Jittor works with." \
        "Install one from 3.9 to 3.14 (3.11 is tried most) and name it:" >&2
    echo "    make setup PYTHON=/path/to/python3.11" >&2
    exit 2
elif [ -z "$python" ]; then
    missing="$missing python3 python3-dev python3-venv"
else
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' \
        || missing="$missing $version-dev"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing $version-venv"
fi
if [ -n "$missing" ]; then
    command="apt-get update && apt-get install -y$missing"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "jseg: installing$missing"
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
    else
        echo "jseg: this machine lacks$missing. Run this, then try again:" >&2
        echo "    sudo sh -c '$command'" >&2
        exit 2
    fi
    find_python
fi
if [ -z "$python" ]; then
    echo "jseg: $(python3 --version), which was just installed, is not one that Jittor works with: 3.9 to 3.14" >&2
    exit 2
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
# pip before 20.3 (Ubuntu 20.04) takes packages that do not fit together, and finds few of today's wheels.
"$venv/bin/python" -c 'import pip, sys; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (20, 3))' \
    || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools wheel
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[test]'
# Jittor's metadata forbid NumPy 2, which jseg makes it work with, and no NumPy 1 has wheels for Python 3.13.
"$venv/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("jittor_utils") is None)' \
    || "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps 'jittor==1.3.11.0'
"$venv/bin/python" -m jseg doctor --short
