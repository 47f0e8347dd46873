# The controller, and emulated workers: no torch, no vLLM.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE} AS controller

ENV PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:$PATH
RUN python3 -m venv /opt/venv
WORKDIR /app
# Packages change rarely and sources often: two layers.
COPY deploy/requirements/controller.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps -r /tmp/requirements.txt
COPY . .
# Compiled at build time, so that no first request pays for it.
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation -e . \
    && python -m scheduling.compile && chmod -R a+rX .
RUN useradd --uid 10001 --no-create-home slos
USER 10001
EXPOSE 8000 9000
ENTRYPOINT ["python", "-m"]
CMD ["services.controller"]
