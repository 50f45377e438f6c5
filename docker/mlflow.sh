#!/bin/sh
# Start what the container is told to, with PostgreSQL's address as this image has it: SQLAlchemy takes a plain postgresql:// for
# psycopg 3, and the driver here is psycopg2.
set -eu

driver() {
    case "$1" in
        postgres://* | postgresql://*) printf 'postgresql+psycopg2://%s' "${1#*://}" ;;
        --*-uri=postgres://* | --*-uri=postgresql://*) printf '%s=postgresql+psycopg2://%s' "${1%%=*}" "${1#*://}" ;;
        *) printf '%s' "$1" ;;
    esac
}

for name in MLFLOW_BACKEND_STORE_URI MLFLOW_REGISTRY_STORE_URI MLFLOW_TRACKING_URI; do
    eval "value=\${$name-}"
    if [ -n "$value" ]; then export "$name=$(driver "$value")"; fi
done
for word in "$@"; do
    shift
    set -- "$@" "$(driver "$word")"
done
exec "$@"
