#!/bin/sh
# Make a Python virtual environment with nothing but Python itself, unless a working one is already there.
#
# usage: venv.sh FOLDER [VERSION]
#   VERSION  exactly this Python, such as 3.11; without it the first of those below that is 3.11 or newer
#   $PYTHON  the interpreter to use instead of looking for one
#
# Every candidate is run, not just looked up: a version manager's shim may be on PATH for a Python that it cannot start.
set -u
folder=${1:?usage: venv.sh FOLDER [VERSION]}
exact=${2:-}

if "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi

if [ -n "${PYTHON:-}" ]; then
    candidates=$PYTHON
elif [ -n "$exact" ]; then
    candidates="python$exact python3 python"
else
    candidates="python3.13 python3.12 python3.11 python3.14 python3 python"
fi

found=
tried=
for candidate in $candidates; do
    if ! command -v "$candidate" >/dev/null 2>&1; then
        tried="$tried
  $candidate: not found"
        continue
    fi
    # Prints nothing and exits 0 when suitable; prints why not otherwise.
    if why=$("$candidate" - "$exact" 2>&1 <<'P'
import sys

version, exact = "%d.%d" % sys.version_info[:2], sys.argv[1]
if sys.version_info < (3, 11):
    sys.exit("is Python %s, 3.11 or newer is needed" % version)
if exact and version != exact:
    sys.exit("is Python %s, %s is needed" % (version, exact))
try:
    import ensurepip, venv
except ImportError as error:
    sys.exit("is Python %s without the module %s (Debian, Ubuntu: install python%s-venv)" % (version, error.name, version))
P
    ); then
        found=$candidate
        break
    fi
    tried="$tried
  $candidate: $(printf '%s\n' "$why" | head -n 1)"
done

if [ -z "$found" ]; then
    echo "No suitable Python (${exact:-3.11 or newer}) to make $folder with. Tried:$tried" >&2
    echo "Install one, or name it: make PYTHON=/path/to/python …" >&2
    exit 1
fi

# What is left of an environment that no longer works, for example because its Python was removed.
if [ -f "$folder/pyvenv.cfg" ]; then
    rm -rf "$folder"
fi
echo "Making $folder with $("$found" --version 2>&1) ($(command -v "$found"))"
exec "$found" -m venv "$folder"
