#!/usr/bin/env bash
# Makes the image that the examples with containers begin from, out of Debian packages and without a registry:
# PostgreSQL, Redis, nginx, Python and PHP in one root file system, named keel-examples/debian:1.
#
#   scripts/images.sh            make it and give it to the engine (DOCKER_HOST, or Docker's own socket)
#   scripts/images.sh archive    only make the archive, and print its path
#
# The archive is made once (a minute) and kept in target/images; remove it to have newer packages. As root.
set -euo pipefail

image=keel-examples/debian:1
suite=bookworm
packages=(
    curl
    nginx-light
    php-cli
    php-fpm
    php-pgsql
    postgresql-15
    python3
    python3-psycopg2
    python3-redis
    redis-server
)
# What nobody reads in a container, and PostgreSQL's compiler of queries, a quarter of the whole, which it does without.
left_out=(
    '/usr/share/doc/*'
    '/usr/share/locale/*'
    '/usr/share/man/*'
    '/usr/lib/*/libLLVM*'
    '/usr/lib/postgresql/*/lib/bitcode/*'
    '/usr/lib/postgresql/*/lib/llvmjit*'
)

say() { printf '%s\n' "$*" >&2; }

die() {
    say "images: $1"
    say "  hint: $2"
    exit 1
}

target=${CARGO_TARGET_DIR:-$(dirname "$0")/../target}
mkdir -p "$target/images"
target=$(cd "$target" && pwd)
# The list of packages is part of the name: another list is another archive.
sum=$(printf '%s\n' "$suite" "${packages[@]}" "${left_out[@]}" | sha256sum | cut -c1-12)
archive=$target/images/debian-$sum.tar

make_archive() {
    [[ -s $archive ]] && return
    command -v mmdebstrap >/dev/null || die "mmdebstrap is not installed" "run: scripts/setup.sh"
    [[ $(id -u) -eq 0 ]] || die "only root makes a root file system" "run: sudo scripts/images.sh"
    say "images: making $archive (about a minute)"
    local options=() path log=$target/images/mmdebstrap.log
    for path in "${left_out[@]}"; do options+=("--dpkgopt=path-exclude=$path"); done
    # A name of its own until it is whole: an interrupted run leaves nothing that looks like an archive.
    if ! mmdebstrap --variant=minbase --include="$(IFS=,; echo "${packages[*]}")" "${options[@]}" \
        "$suite" "$archive.$$.tar" >"$log" 2>&1; then
        rm -f "$archive.$$.tar"
        tail -n 20 "$log" >&2
        die "the packages could not be installed" "see $log"
    fi
    mv "$archive.$$.tar" "$archive"
}

(
    flock 9
    make_archive
) 9>"$target/images/lock"
if [[ ${1:-} == archive ]]; then
    printf '%s\n' "$archive"
    exit
fi
command -v docker >/dev/null || die "the docker command is not installed" "run: scripts/setup.sh"
if docker image inspect "$image" >/dev/null 2>&1; then
    say "images: $image is there"
else
    docker import --change 'CMD ["bash"]' "$archive" "$image" >/dev/null
    say "images: $image is made"
fi
