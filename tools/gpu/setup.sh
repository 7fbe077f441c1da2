#!/usr/bin/env bash
# On a GPU machine without network: say what is there, and take in what pack.sh has made of it.
#
# usage: setup.sh --have      print the machine's Python and its packages, for pack.sh
#        setup.sh FOLDER      take the parts that are in FOLDER; once all are there, check and unpack them
#
# The parts may come one at a time, SHA256SUMS with each. They are kept in $LLMPROD_GPU_HOME (~/.llmprod-gpu) and unpacked
# to its folder `site`, which run.sh puts in front of the machine's own packages: nothing else of the machine is
# changed. $PYTHON is the interpreter whose packages count (python3).
set -euo pipefail
home=${LLMPROD_GPU_HOME:-$HOME/.llmprod-gpu}
python=${PYTHON:-python3}

case "${1:-}" in
--have)
    exec "$python" - <<'P'
import importlib.metadata
import platform
import re
import sys

print("# python %d.%d" % sys.version_info[:2])
print("# machine " + platform.machine())
print("# glibc " + platform.libc_ver()[1].replace(".", "_"))
found = {}
for there in importlib.metadata.distributions():
    if there.metadata["Name"]:
        found.setdefault(re.sub(r"[-_.]+", "-", there.metadata["Name"]).lower(), there.version)
for name in sorted(found):
    print(name + "==" + found[name])
P
    ;;
"" | -*)
    echo "usage: $0 --have | FOLDER" >&2
    exit 2
    ;;
esac

from=$1
if [ ! -f "$from/SHA256SUMS" ]; then
    echo "$from has no SHA256SUMS: it is not what pack.sh writes" >&2
    exit 1
fi
mkdir -p "$home/parts"
if ! cmp -s "$from/SHA256SUMS" "$home/parts/SHA256SUMS"; then # another pack: what is left of the last one is of no use
    rm -rf "$home/parts" "$home/site"
    mkdir -p "$home/parts"
    cp "$from/SHA256SUMS" "$home/parts/"
fi
for part in "$from"/part.*; do
    [ -e "$part" ] && cp "$part" "$home/parts/"
done

cd "$home/parts"
if ! sha256sum --check --ignore-missing --status SHA256SUMS; then
    bad=$(sha256sum --check --ignore-missing SHA256SUMS 2>/dev/null | sed -n 's/: FAILED.*//p' | xargs) || true
    # shellcheck disable=SC2086 # several names
    [ -z "$bad" ] || rm -f $bad
    echo "damaged on the way: ${bad:-all of it}; bring it again" >&2
    exit 1
fi
missing=$(cut -c67- SHA256SUMS | while read -r part; do [ -e "$part" ] || echo "$part"; done | xargs)
if [ -n "$missing" ]; then
    echo "$(find . -name 'part.*' | wc -l) of $(wc -l <SHA256SUMS) parts are here; still to come: $missing"
    exit 0
fi
rm -rf "$home/site" "$home/site.new"
mkdir "$home/site.new"
cat part.* | xz -T0 -dc | tar -C "$home/site.new" -xf -
# Each of an engine's processes imports some 5,000 modules and would compile them anew. Not every file is valid for this
# Python: those that are not are never imported either.
env -u PYTHONDONTWRITEBYTECODE "$python" -m compileall -q -j 0 "$home/site.new" >/dev/null 2>&1 || true
mv "$home/site.new" "$home/site"
echo "ready: $home/site, $(du -sm "$home/site" | cut -f1) MB"
