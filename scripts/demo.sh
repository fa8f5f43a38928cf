#!/usr/bin/env bash
# The demo behind `make demo`: builds keel and the shop, brings the shop up, kills one of its instances and rolls out a
# new revision while customers are served, and proves that no request was lost. The shop keeps running afterwards.
#
# Environment: SHOP_PORT (8080), DEMO_RATE (200 requests per second), KEEL_STATE_DIR.
# Exit code: 0 when nothing was lost, 1 otherwise. It can be run again while the shop runs.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly FILE=examples/shop/compose.yaml
readonly STACK=shop
readonly KEEL=./target/release/keel
readonly SHOP=./target/release/shop
readonly RATE=${DEMO_RATE:-200}
# The load ends by itself after this time, even if this script is killed.
readonly LOAD_SECONDS=600
# How long a killed instance may take to be replaced before the demo gives up.
readonly HEAL_SECONDS=30

if [[ -t 1 && -z "${NO_COLOR:-}" && "${TERM:-dumb}" != dumb ]]; then
  bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' dim=$'\e[2m' reset=$'\e[0m'
else
  bold='' red='' green='' dim='' reset=''
fi

step() { printf '\n%s==> %s%s\n' "$bold" "$*" "$reset"; }
note() { printf '%s    %s%s\n' "$dim" "$*" "$reset"; }
fail() { printf '%serror:%s %s\n' "$red$bold" "$reset" "$*" >&2; exit 1; }

work=$(mktemp -d)
load_pid=''
finish() {
  if [[ -n $load_pid ]]; then kill -TERM "$load_pid" 2>/dev/null || true; fi
  rm -rf "$work"
}
trap finish EXIT

up=''
interrupted() {
  trap - INT TERM
  if [[ -n $up ]]; then
    printf '\n%s\n  stop the shop      %s\n  stop the server    %s\n' "interrupted; the shop and the server run on" \
      "$KEEL -f $FILE down" "$KEEL server stop" >&2
  else
    printf '\ninterrupted; nothing was started\n' >&2
  fi
  exit 130
}
trap interrupted INT TERM

# Whether something listens on a port of this machine that is not the shop itself.
port_is_taken() {
  if "$KEEL" -p "$STACK" port storefront 80 2>/dev/null | grep -q ":$1\$"; then return 1; fi
  (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# Instances of a service that take requests, one `name pid` per line.
ready_instances() {
  "$KEEL" -p "$STACK" ps "$1" --output json | awk -F'"' '
    /^    "name":/ { name = $4 }
    /^    "ready": true/ { ready = 1 }
    /^    "ready": false/ { ready = 0 }
    /^    "pid": [0-9]/ { gsub(/[^0-9]/, "", $3); if (ready) print name, $3 }'
}

# `ps` of a service, with a remark behind the lines of some instances: name and remark per line on descriptor 3.
show() {
  local service=$1 colour=$2 remarks=$3 line name remark
  "$KEEL" -p "$STACK" ps "$service" --color never | while IFS= read -r line; do
    name=${line%% *}
    remark=$(awk -v name="$name" '$1 == name { $1 = ""; print; exit }' "$remarks")
    if [[ -n $remark ]]; then
      printf '    %s%s  <--%s%s\n' "$colour" "$line" "$remark" "$reset"
    else
      printf '    %s\n' "$line"
    fi
  done
}

now_ms() { date +%s%3N; }

json_number() { sed -n "s/^ *\"$1\": \([0-9.]*\),*$/\1/p" "$2" | head -n 1; }

command -v cargo >/dev/null || fail "cargo was not found: install Rust from https://rustup.rs and run make demo again"

step "Building keel and the shop"
cargo build --release -p keel -p shop

if port_is_taken "${SHOP_PORT:-8080}"; then
  fail "port ${SHOP_PORT:-8080} is in use: choose another one, such as SHOP_PORT=8090 make demo"
fi

step "Bringing up the shop: five services, each with two or three instances"
up=1
"$KEEL" -f "$FILE" up --detach --wait

address=$("$KEEL" -p "$STACK" port storefront 80 | head -n 1)
url=http://127.0.0.1:${address##*:}

step "Customers arrive: $RATE requests per second at $url"
"$SHOP" load "$url/" --rate "$RATE" --connections 16 --seconds "$LOAD_SECONDS" >"$work/load.json" &
load_pid=$!
sleep 2
kill -0 "$load_pid" 2>/dev/null || fail "the load generator ended early: $(cat "$work/load.json")"
note "they keep coming during everything that follows"

step "An instance of catalog is killed with -9"
ready_instances catalog >"$work/before"
wanted=$(wc -l <"$work/before")
read -r victim victim_pid <"$work/before" || fail "catalog has no ready instance"
echo "$victim is about to die (pid $victim_pid)" >"$work/remarks"
show catalog "$red" "$work/remarks"
killed_at=$(now_ms)
kill -9 "$victim_pid"
note "kill -9 $victim_pid"
while :; do
  ready_instances catalog >"$work/after"
  if [[ $(wc -l <"$work/after") -ge $wanted ]] && ! grep -q " $victim_pid\$" "$work/after"; then break; fi
  if (($(now_ms) - killed_at > HEAL_SECONDS * 1000)); then
    fail "catalog did not have $wanted ready instances again within $HEAL_SECONDS s: see $KEEL -p $STACK events"
  fi
  sleep 0.02
done
healed_ms=$(($(now_ms) - killed_at))
awk -v ms="$healed_ms" 'NR == FNR { old[$2] = 1; next }
  !($2 in old) { print $1, "took its place, ready " ms " ms after the kill (pid " $2 ")" }' \
  "$work/before" "$work/after" >"$work/remarks"
show catalog "$green" "$work/remarks"
note "$wanted of $wanted ready again $healed_ms ms after the kill"

step "A new revision of catalog is rolled out: everything is 20 % off"
version=demo-$(date +%H%M%S)
CATALOG_VERSION=$version SALE=20 "$KEEL" -f "$FILE" diff catalog
CATALOG_VERSION=$version SALE=20 "$KEEL" -f "$FILE" up --detach --wait catalog
"$KEEL" -p "$STACK" ps catalog | sed 's/^/    /'

step "What the customers noticed"
sleep 1
kill -TERM "$load_pid"
load_code=0
wait "$load_pid" || load_code=$?
load_pid=''
requests=$(json_number requests "$work/load.json")
failed=$(json_number failed "$work/load.json")
if [[ $load_code -ne 0 || -z $requests || ${requests:-0} -eq 0 || ${failed:-1} -ne 0 ]]; then
  cat "$work/load.json"
  fail "${failed:-an unknown number of} of ${requests:-0} requests failed"
fi
printf '    %s%s requests, %s failed%s\n' "$green$bold" "$requests" "$failed" "$reset"
note "latency in ms: $(sed -n '/"latency_ms"/,/}/p' "$work/load.json" | tr -d '\n "{}' | sed 's/^latency_ms://; s/,/  /g; s/:/ /g')"

cat <<END

${green}${bold}The shop is open:${reset} ${bold}$url${reset}

  look around        $KEEL -p $STACK ps
                     $KEEL -p $STACK logs -f
                     $KEEL -p $STACK history
  change something   $KEEL -p $STACK scale catalog=6
  stop the shop      $KEEL -f $FILE down
  stop the server    $KEEL server stop
END
