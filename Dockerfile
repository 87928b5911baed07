# syntax=docker/dockerfile:1
FROM python:3.13-slim AS build
WORKDIR /build
RUN python -m venv /venv
COPY requirements.lock ./
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY src src
COPY generated generated
RUN pip install --no-cache-dir build==1.3.0 \
    && python -m build --wheel --outdir /dist . \
    && /venv/bin/pip install --no-cache-dir --no-deps /dist/*.whl

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home dp
COPY --from=build /venv /venv
# The address only. Until you set TLS (or DP_INSECURE), and a way to prove who calls (or DP_ANONYMOUS), it ends
# with sentences that say so.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 DP_LISTEN=0.0.0.0:50051
USER dp
EXPOSE 50051
HEALTHCHECK --interval=10s --timeout=6s --start-period=10s CMD ["deployment-pipeline", "healthcheck"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["deployment-pipeline"]
CMD ["serve"]
