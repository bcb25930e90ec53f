# SPDX-License-Identifier: Apache-2.0
# Sourced by tests/run and tests/demo: makes .venv with one extra of the project, from a bare Debian with Python 3.11.
#
#   set_up EXTRA [DEBIAN_PACKAGE ...]
#
# What is missing of Debian's packages is installed where we are root, else named.
#
#   set_up_sdk
#
# makes .venv-sdk with Aliyun's own Python SDK, for tests/foreign. It needs a paho-mqtt that is not otad's.

set_up() {
    local extra=$1 missing=() package
    shift
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
    python3 -c 'import ensurepip, venv' 2>/dev/null || set -- python3-venv "$@"
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
                "${missing[@]}" >/dev/null || exit 1
        else
            echo "not installed, and only root may: apt-get install ${missing[*]}" >&2
        fi
    fi
    # Again only when what is to be installed has changed.
    make_venv .venv "$extra-$(sha256sum pyproject.toml | cut -c1-16)" --editable ".[$extra]" || exit 1
}

set_up_sdk() {
    cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
    # --no-deps: crcmod, which it asks for, needs a C compiler and is only for its HTTP/2 client.
    make_venv .venv-sdk aliyun-1.2.13 --no-deps aliyun-iot-linkkit==1.2.13 'paho-mqtt<2'
}

# make_venv DIRECTORY STAMP PIP_ARGUMENT ...: a virtual environment, unless there is one with this stamp.
make_venv() {
    local venv=$1 stamp=$1/$2
    shift 2
    if [ ! -x "$venv/bin/pip" ]; then
        python3 -m venv "$venv" || return 1
    fi
    if [ ! -e "$stamp" ]; then
        echo "setting up $venv, this time only" >&2
        "$venv/bin/pip" install --quiet --disable-pip-version-check "$@" || return 1
        touch "$stamp"
    fi
}
