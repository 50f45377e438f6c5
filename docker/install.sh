#!/bin/sh
# Install into /opt/venv, byte-compiled: install.sh LOCK [TORCH_BACKEND], or install.sh --checkout DIR.
set -eu
export UV_CACHE_DIR=/tmp/cache UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1 UV_NO_PROGRESS=1
uv() { sh /tmp/tools/lent.sh /tmp/tools/venv/bin/uv "$@"; }

if [ "$1" = --checkout ]; then
    chmod -R u=rwX,go=rX "$2"
    uv pip install -q --no-deps --no-build-isolation --offline -e "$2"
    rm -rf "$2"/*.egg-info "$2"/build
    /opt/venv/bin/python -m compileall -q "$2"
    # What a user adds: packages in this folder are found, and cannot stand before ours.
    mkdir /opt/extra
    echo /opt/extra > "$(/opt/venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/extra.pth"
elif [ -z "${2:-}" ]; then
    uv pip install --require-hashes -r "$1"
else
    # PyTorch's own index has other files under the same versions, so the lock's hashes cannot hold for any of it.
    grep -vE '^ *(--hash|#)' "$1" | sed 's/ *\\$//' | grep -vE '^(nvidia-|cuda-|triton)' > /tmp/requirements.txt
    uv pip install --torch-backend "$2" -r /tmp/requirements.txt
fi
rm -f /opt/venv/.lock
