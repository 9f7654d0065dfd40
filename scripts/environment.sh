# Sourced by the scripts beside it: makes .venv and installs a requirements file, once.
#
#   prepare_environment requirements.txt     sets PYTHON

prepare_environment() {
    local requirements="$1" python stamp
    python="${PYTHON:-python3}"
    if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))'; then
        echo "error: $python is $("$python" -V 2>&1); Python 3.10, 3.11 or 3.12 is needed (name one: PYTHON=python3.11 bash $0)" >&2
        exit 1
    fi
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    PYTHON="$PWD/.venv/bin/python"
    stamp=".venv/installed-$requirements"
    if ! cat requirements.txt "$requirements" | cmp -s - "$stamp"; then
        echo "installing $requirements into .venv ..."
        "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements"
        cat requirements.txt "$requirements" > "$stamp"
    fi
}
