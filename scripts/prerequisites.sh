#!/bin/sh
# usage: prerequisites.sh PYTHON     Says what is missing before a long build fails for it.
python=$1
fail() { echo "nibble: $1" >&2; exit 1; }

command -v cargo >/dev/null || fail "no cargo on PATH: install Rust with https://rustup.rs"
command -v "${CXX:-c++}" >/dev/null || fail "no C++ compiler (${CXX:-c++}), which libtorch's bindings need: apt-get install g++"
command -v "$python" >/dev/null || fail "no $python on PATH: apt-get install python3 python3-pip"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' || fail "$python is older than 3.9"
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip: apt-get install python3-pip"
