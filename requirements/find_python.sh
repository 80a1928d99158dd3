#!/usr/bin/env bash
# Print the path of a Python that can hold this project, or say what is missing and return 4.
#
# Each candidate is run: a pyenv shim named python3.12 may exist and still fail, and Debian's python3
# may lack ensurepip. The order is that of what is tested: 3.12 first. PYTHON=... skips the search.
set -euo pipefail

probe='
import sys
if sys.version_info < (3, 12):
    raise SystemExit("it is Python %d.%d" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError as error:
    raise SystemExit(f"it has no {error.name} (Debian and Ubuntu: install python3-venv)")
print(sys.executable)
'

if [[ -n "${PYTHON:-}" ]]; then
    if ! path=$("$PYTHON" -c "$probe" 2>&1); then
        echo "error: PYTHON=$PYTHON cannot be used: ${path##*$'\n'}" >&2
        echo "  rule    Python >= 3.12 with venv and ensurepip" >&2
        echo "  remedy  name another one, or leave PYTHON out to have one looked for" >&2
        exit 4
    fi
    echo "$path"
    exit 0
fi

shopt -s nullglob
pyenv_root=${PYENV_ROOT:-$HOME/.pyenv}
candidates=(python3.12 python3.13 python3.14 python3)
for minor in 12 13 14; do
    candidates+=("$pyenv_root"/versions/3."$minor"*/bin/python)
done

for candidate in "${candidates[@]}"; do
    if path=$("$candidate" -c "$probe" 2>/dev/null); then
        echo "$path"
        exit 0
    fi
done

echo "error: found no Python >= 3.12 with venv and ensurepip." >&2
echo "  looked at  ${candidates[*]}" >&2
echo "  rule       megatron-core 0.19 needs Python >= 3.12" >&2
echo "  remedy     install one, or name it: make setup PYTHON=/path/to/python3.12" >&2
exit 4
