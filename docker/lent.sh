#!/bin/sh
# Run a command with what the build was lent: certificate authorities, settings of pip and of uv. Everything in /tmp: it is not kept.
set -eu
lent=/tmp/lent
if [ -f "$lent/ca" ]; then
    cat /etc/ssl/certs/ca-certificates.crt "$lent/ca" > /tmp/ca.pem
    export SSL_CERT_FILE=/tmp/ca.pem PIP_CERT=/tmp/ca.pem
fi
if [ -f "$lent/pip.conf" ]; then export PIP_CONFIG_FILE="$lent/pip.conf"; fi
if [ -f "$lent/uv.toml" ]; then export UV_CONFIG_FILE="$lent/uv.toml"; fi
exec "$@"
