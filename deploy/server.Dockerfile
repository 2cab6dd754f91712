# The server and what it needs to run: no torch, no compiler, no root.
#   docker build -f deploy/server.Dockerfile -t polyhead-server .
#   docker run --read-only -p 127.0.0.1:50051:50051 -v "$PWD/models:/models:ro" polyhead-server
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# A package index of one's own. Arguments of this stage do not reach the final image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/polyhead
WORKDIR /source
# What is installed depends on these two files alone, so that a change of the sources installs nothing but them again.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*project['dependencies'], *project['optional-dependencies']['server'], sep='\n')" > /requirements.txt \
 && pip --python /opt/polyhead/bin/python install --constraint constraints.txt --requirement /requirements.txt
COPY . .
RUN pip wheel --quiet --no-deps --wheel-dir /wheels . \
 && pip --python /opt/polyhead/bin/python install --no-deps /wheels/polyhead-*.whl \
 && pip --python /opt/polyhead/bin/python check

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/polyhead /opt/polyhead
ENV PATH=/opt/polyhead/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    POLYHEAD_MODELS=/models \
    POLYHEAD_HOST=0.0.0.0 \
    POLYHEAD_PORT=50051 \
    POLYHEAD_METRICS_HOST=0.0.0.0 \
    POLYHEAD_METRICS_PORT=9464 \
    POLYHEAD_LOG_FORMAT=json
USER 65532:65532
EXPOSE 50051 9464
HEALTHCHECK --interval=10s --timeout=8s --start-period=60s --retries=3 \
    CMD polyhead health --target "127.0.0.1:$POLYHEAD_PORT" --timeout 5
ENTRYPOINT ["polyhead", "serve"]
