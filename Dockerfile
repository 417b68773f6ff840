# Two targets: `operator` (control plane, no torch) and `trainer` (torch and Ray, what the pods run).
#   docker build --target operator -t ireko-operator .
#   docker build --target trainer  -t ireko-trainer .
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS base
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
RUN useradd --uid 10001 --create-home ireko
WORKDIR /opt/ireko
COPY requirements.lock pyproject.toml README.md LICENSE ./

FROM base AS operator
COPY crds crds
COPY operator operator
COPY trainer trainer
# The lock is a constraint here: only the packages that the extra `operator` needs are installed.
RUN sed -e '/^ *--hash/d' -e 's/ \\$//' requirements.lock > constraints.txt \
    && pip install --no-cache-dir --constraint constraints.txt '.[operator]'
USER 10001
ENTRYPOINT ["ireko"]

FROM base AS trainer
COPY crds crds
COPY operator operator
COPY trainer trainer
RUN sed -e '/^ *--hash/d' -e 's/ \\$//' requirements.lock > constraints.txt \
    && pip install --no-cache-dir --constraint constraints.txt '.[trainer,s3]'
USER 10001
ENTRYPOINT ["python", "-m", "ireko_trainer"]
