#!/bin/sh
# Make a virtual environment with jseg in it: sh tools/setup.sh .venv
# Finds g++, a Python from 3.9 to 3.12 and its headers; as root on Debian or Ubuntu it installs what is missing, otherwise it prints
# the command and stops. Nothing is fetched but packages.
set -eu
venv=${1:-.venv}

python=
for name in python3.11 python3.12 python3.10 python3.9 python3; do
    if "$name" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then python=$name; break; fi
done
missing=""
command -v g++ >/dev/null 2>&1 || missing="$missing g++"
if [ -z "$python" ]; then
    missing="$missing python3 python3-dev python3-venv"
else
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' \
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
fi
if [ -z "$python" ]; then python=python3; fi
"$python" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 12))' || {
    echo "jseg: $("$python" --version) is not one that Jittor's NumPy supports; install Python 3.9 to 3.12 (3.11 is tried most)" >&2
    exit 2
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[test]'
"$venv/bin/python" -m jseg doctor --short
