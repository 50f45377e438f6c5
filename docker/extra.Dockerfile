# A user's own package on top of the image: make build-images EXTRA=dir. Written by hand, the same is
#
#   FROM rco-python:TAG
#   COPY mypackage /opt/extra/mypackage
#
# /opt/extra is on Python's path. A package with a pyproject.toml is built by pip, without its dependencies: the
# locked ones stay as they are.
ARG BASE_IMAGE=python:3.11-slim-bookworm
ARG IMAGE=rco-python

FROM ${BASE_IMAGE} AS package
COPY . /context
RUN --mount=type=tmpfs,target=/tmp \
    --mount=type=secret,id=ca,target=/tmp/lent/ca \
    --mount=type=secret,id=pip.conf,target=/tmp/lent/pip.conf \
    mkdir /extra \
    && if [ -f /context/package/pyproject.toml ] || [ -f /context/package/setup.py ]; \
    then sh /context/lent.sh python3 -m pip install --no-cache-dir --no-deps --no-compile --target /extra /context/package; \
    else cp -R /context/package/. /extra/; fi \
    && rm -rf /extra/bin \
    && python3 -m compileall -q /extra \
    && chmod -R u=rwX,go=rX /extra

FROM ${IMAGE}
COPY --from=package /extra /opt/extra
