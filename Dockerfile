# Two images: `operator` (control plane, no torch) and `trainer` (what the Ray pods run).
#   docker build --target operator -t ireko-operator:0.1.0 .
#   docker build --target trainer  -t ireko-trainer:0.1.0  .
# Both run as uid 10001, write nowhere but below /tmp, and hold no compiler and no package installer's cache.
#
# Any Debian-like image with Python 3.11 or newer as `python3` (with venv) and `bash` will do.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ARG UV_VERSION=0.13.9
# Where packages come from, if not from PyPI: the same address for both.
ARG PIP_INDEX_URL
ARG UV_DEFAULT_INDEX
ENV UV_LINK_MODE=copy
RUN python3 -m venv /build/uv && /build/uv/bin/pip install --no-cache-dir "uv==${UV_VERSION}" \
    && python3 -m venv --without-pip /opt/ireko
WORKDIR /build/source
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY crds/ireko_api crds/ireko_api
COPY operator operator
COPY trainer trainer

# The lock is a constraint: only what the extras need is installed, at its pinned version and with its pinned hash.
FROM build AS build-operator
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/uv/bin/uv pip install --python /opt/ireko/bin/python --compile-bytecode --constraint requirements.lock '.[operator]' \
    && rm -f /opt/ireko/.lock

FROM build AS build-trainer
RUN --mount=type=cache,target=/root/.cache/uv \
    /build/uv/bin/uv pip install --python /opt/ireko/bin/python --compile-bytecode --constraint requirements.lock '.[trainer,s3]' \
    && rm -f /opt/ireko/.lock

FROM ${BASE_IMAGE} AS base
RUN echo 'ireko:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd && echo 'ireko:x:10001:' >> /etc/group
ENV PATH=/opt/ireko/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /tmp

FROM base AS operator
COPY --from=build-operator /opt/ireko /opt/ireko
USER 10001:10001
ENTRYPOINT ["ireko"]
CMD ["operator"]

# KubeRay starts `ray` in it by a shell, so it has no entry point of its own. HOME=/tmp is where Ray keeps its settings.
FROM base AS trainer
ENV RAY_USAGE_STATS_ENABLED=0
COPY --from=build-trainer /opt/ireko /opt/ireko
USER 10001:10001
CMD ["ray", "--version"]
