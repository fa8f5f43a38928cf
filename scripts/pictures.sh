#!/usr/bin/env bash
# Makes the pictures of the docs: the real shop in a real browser, and a real terminal. Needs chromium and python3.
#
#   scripts/pictures.sh        writes docs/pictures/*.png
set -euo pipefail
cd "$(dirname "$0")/.."

command -v chromium >/dev/null || { echo "error: chromium is not installed" >&2; exit 1; }
cargo build --release -p keel -p shop
root=$PWD
work=$(mktemp -d)
export KEEL_STATE_DIR=$work/state KEEL_VIP_CIDR=127.92.0.0/16 SHOP_PORT=18083 SHOP_BIN=shop
export PATH=$root/target/release:$PATH
keel="$root/target/release/keel -f $root/examples/shop/compose.yaml"
trap '$keel down >/dev/null 2>&1 || true; $keel server stop >/dev/null 2>&1 || true; rm -rf "$work"' EXIT

photograph() { # page, size, picture
  chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars \
    --disable-background-networking --disable-component-update --disable-sync \
    --user-data-dir="$work/browser" --window-size="$2" --virtual-time-budget=4000 \
    --screenshot="$3" "$1" >/dev/null 2>&1
}

mkdir -p docs/pictures
{
  echo '$ keel up -d --wait'
  $keel --color always up -d --wait 2>&1 | tail -6
  echo '$ kill -9 $(pgrep -f "shop catalog" | head -1); keel ps'
  kill -9 "$($keel ps catalog --output json | sed -n 's/^ *"pid": \([0-9]*\),/\1/p' | head -1)"
  sleep 1
  $keel --color always ps
  echo '$ CATALOG_VERSION=v2 keel diff'
  CATALOG_VERSION=v2 $keel --color always diff
  echo '$ keel events --since 3s | grep catalog-1'
  $keel --color always events --since 3s | grep catalog-1
} >"$work/terminal.txt"

python3 - "$work/terminal.txt" "$work/terminal.html" <<'PYTHON'
"""From terminal output with colours to a page."""
import html, re, sys
colours = {"31": "#f7768e", "32": "#9ece6a", "33": "#e0af68", "34": "#7aa2f7", "35": "#bb9af7", "36": "#7dcfff"}
text = html.escape(open(sys.argv[1], encoding="utf-8").read())
state = {}
def style(match):
    for code in match.group(1).split(";"):
        if code in ("", "0"): state.clear()
        elif code == "1": state["font-weight"] = "700"
        elif code == "2": state["opacity"] = ".6"
        elif code == "22": state.pop("font-weight", None), state.pop("opacity", None)
        elif code == "39": state.pop("color", None)
        elif "3" + code[-1] in colours: state["color"] = colours["3" + code[-1]]
    return '</span><span style="%s">' % ";".join(":".join(pair) for pair in state.items())
text = re.sub("\x1b\\[([0-9;]*)m", style, text)
text = re.sub(r"(?m)^(\$ .*)$", r'<b style="color:#7aa2f7">\1</b>', text)
open(sys.argv[2], "w", encoding="utf-8").write(
    "<meta charset=utf-8><body style='margin:0;background:#1a1b26;color:#c0caf5;font:14px/1.45 monospace'>"
    f"<pre style='margin:24px;white-space:pre'><span>{text}</span></pre>")
PYTHON

lines=$(wc -l <"$work/terminal.txt")
photograph "file://$work/terminal.html" "1180,$((lines * 21 + 60))" "$root/docs/pictures/terminal.png"
photograph "http://127.0.0.1:$SHOP_PORT/" 1180,900 "$root/docs/pictures/shop.png"
echo "docs/pictures/terminal.png docs/pictures/shop.png"
