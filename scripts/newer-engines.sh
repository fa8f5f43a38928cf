#!/usr/bin/env bash
# Runs the tests of containers with the engines of Debian 13: Docker 26, Compose 2, BuildKit's plugin, Podman 5.
#
#   sudo scripts/newer-engines.sh                  all of them
#   sudo scripts/newer-engines.sh --image-store    with Docker's images kept by containerd, as new installations of Docker 29 do
#   sudo scripts/newer-engines.sh -- ARGUMENTS     what `cargo nextest run` is to run
#
# The programs are in a root of their own below target/, made once (about 700 MB); nothing is installed here. Each runs
# in a mount namespace that has this machine's files where tests have theirs.
set -euo pipefail
cd "$(dirname "$0")/.."

here=$PWD/target/engines
root=$here/debian-13
bin=$here/bin
store=false
if [[ ${1-} == --image-store ]]; then
    store=true
    shift
fi
if [[ ${1-} == -- ]]; then shift; fi
if [[ $EUID -ne 0 ]]; then
    echo "error: engines need root; run it with sudo" >&2
    exit 1
fi

if [[ ! -e $root/.complete ]]; then
    rm -rf "$root"
    mkdir -p "$here" "$bin"
    packages=docker.io,docker-cli,docker-compose,docker-buildx,podman,runc,netavark,aardvark-dns,nftables,iptables
    packages+=,iproute2,catatonit,tini,ca-certificates,git,procps
    mmdebstrap --variant=minbase --include="$packages" trixie "$root"
    # What the default limits ask for is more than a machine may allow that is a container itself.
    mkdir -p "$root/etc/containers" "$root/etc/docker"
    printf '[containers]\ndefault_ulimits=["nofile=1024:1024","nproc=1024:1024"]\n' >"$root/etc/containers/containers.conf"
    touch "$root/.complete"
fi
printf '{"features": {"containerd-snapshotter": %s}}\n' "$store" >"$root/etc/docker/daemon.json"

mkdir -p "$bin"
for program in dockerd docker docker-compose podman; do
    cat >"$bin/$program" <<END
#!/bin/sh
exec unshare --mount --propagation slave sh -c 'root=\$1; cwd=\$2; shift 2
mount --rbind "\$root" "\$root"
for dir in proc sys dev run tmp root "$PWD"; do
    mkdir -p "\$root/\$dir"
    mount --rbind "/\$dir" "\$root/\$dir"
done
cd "\$root" && pivot_root . mnt && umount -l /mnt
exec env -C "\$cwd" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin $program "\$@"' \\
    $program "$root" "\$PWD" "\$@"
END
    chmod +x "$bin/$program"
done

PATH=$bin:$PATH
docker --version
docker-compose version
podman --version
if [[ $# -eq 0 ]]; then
    tests='binary(it) + binary(adopt) + binary(beside) + binary(containers) + binary(engines) + binary(examples) + binary(exec)'
    tests+=' + binary(images) + binary(life) + binary(watch)'
    set -- --no-fail-fast -E "(package(keel-container) + package(keel)) & ($tests)"
fi
KEEL_TESTS_NEED_ENGINES=1 exec cargo nextest run -p keel-container -p keel "$@"
