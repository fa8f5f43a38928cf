#!/usr/bin/env bash
# Installs what building, tests, examples and demos need, and nothing that is there already.
#
# Packages of Debian and Ubuntu only; elsewhere it names what is missing. Services that a package brings along are
# neither started nor enabled, and those that run already are left alone. Quick when there is nothing to do.
set -euo pipefail

minimum_rust=1.90
PATH="$PATH:/usr/sbin:/sbin"
if [[ -d "${CARGO_HOME:-${HOME:-/nonexistent}/.cargo}/bin" ]]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
fi

# Command that shows whether it is there, and the package that brings it.
needs=(
    cc:build-essential
    make:make
    curl:curl
    h2load:nghttp2-client
    redis-server:redis-server
    nginx:nginx-light
    haproxy:haproxy
    wrk:wrk
    ip:iproute2
    dig:bind9-dnsutils
    ps:procps
    openssl:openssl
    pebble:pebble
    dockerd:docker.io
    docker-compose:docker-compose
    mmdebstrap:mmdebstrap
    docker-registry:docker-registry
    htpasswd:apache2-utils
    podman:podman
    newuidmap:uidmap
    slirp4netns:slirp4netns
    rootlesskit:rootlesskit
    ssh-agent:openssh-client
    busybox:busybox-static
)
# File that shows whether it is there, and the package that brings it.
files=(
    /usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream
    /usr/bin/catatonit:catatonit
)
# Module of Python that the tests import, and the package that brings it.
modules=(
    grpc:python3-grpcio
    websockets:python3-websockets
)
# Packages whose service must not be started for us, and the name of that service.
services=(
    redis-server:redis-server
    nginx-light:nginx
    haproxy:haproxy
    docker.io:docker
    docker-registry:docker-registry
    podman:podman
)

say() { printf '%s\n' "$*" >&2; }

die() {
    say "setup: $1"
    say "  hint: $2"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# python3-minimal has the command but not the modules that the examples use.
have_python() { have python3 && python3 -c 'import http.server, sqlite3' >/dev/null 2>&1; }

# The packages are for the interpreter of the system, which need not be the first in the path.
have_module() {
    local python
    for python in python3 /usr/bin/python3; do
        "$python" -c "import $1" >/dev/null 2>&1 && return
    done
    return 1
}

as_root() {
    if [[ $(id -u) -eq 0 ]]; then "$@"; else sudo "$@"; fi
}

check_rust() {
    have cargo || die "cargo is not installed" \
        "get Rust $minimum_rust or newer from https://rustup.rs, then run this again"
    local version
    version=$(rustc --version | cut -d' ' -f2)
    if [[ $(printf '%s\n' "$minimum_rust" "$version" | sort -V | head -n1) != "$minimum_rust" ]]; then
        die "Rust $version is too old, $minimum_rust is needed" "run: rustup update stable"
    fi
}

missing_packages() {
    local need
    for need in "${needs[@]}"; do
        have "${need%%:*}" || printf '%s\n' "${need##*:}"
    done
    for need in "${files[@]}"; do
        [[ -e ${need%%:*} ]] || printf '%s\n' "${need##*:}"
    done
    have_python || printf 'python3\n'
    for need in "${modules[@]}"; do
        have_module "${need%%:*}" || printf '%s\n' "${need##*:}"
    done
}

# While packages are installed, tells their scripts to start no service. An existing policy is kept.
policy=/usr/sbin/policy-rc.d
own_policy=
forbid_starts() {
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
        own_policy=yes
        trap allow_starts EXIT
        trap 'exit 130' INT TERM
    fi
}
allow_starts() {
    if [[ -n $own_policy ]]; then
        as_root rm -f "$policy"
        own_policy=
    fi
}

# A service that came with a package just now does not start with the machine either.
disable_new_services() {
    local service
    for service in "${services[@]}"; do
        [[ " $* " == *" ${service%%:*} "* ]] || continue
        if have systemctl; then
            as_root systemctl disable --quiet "${service##*:}" >/dev/null 2>&1 || true
        elif have update-rc.d; then
            as_root update-rc.d "${service##*:}" disable >/dev/null 2>&1 || true
        fi
    done
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l \
        apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"
}

install_packages() {
    local packages=("$@")
    have apt-get || die "these are missing: ${packages[*]}" \
        "install them with this system's package manager (the names are Debian's)"
    if [[ $(id -u) -ne 0 ]] && ! have sudo; then
        die "these packages are missing: ${packages[*]}" \
            "as root, run: apt-get install ${packages[*]}"
    fi
    say "setup: installing ${packages[*]}"
    forbid_starts
    local log
    log=$(mktemp)
    # The lists may be old or absent: try with what is there first.
    if ! apt_install "${packages[@]}" >"$log" 2>&1; then
        if ! { as_root apt-get update && apt_install "${packages[@]}"; } >"$log" 2>&1; then
            tail -n 20 "$log" >&2
            rm -f "$log"
            die "apt-get could not install ${packages[*]}" \
                "put right what it says above, then run this again"
        fi
    fi
    rm -f "$log"
    disable_new_services "${packages[@]}"
    allow_starts
}

check_rust
mapfile -t missing < <(missing_packages)
if ((${#missing[@]} > 0)); then
    install_packages "${missing[@]}"
fi
