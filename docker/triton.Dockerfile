ARG BASE

FROM ${BASE}
ARG BASE
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="mlites triton" \
    org.opencontainers.image.description="NVIDIA Triton with explicit model control; models come from MLITES_REPOSITORY alone" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}" \
    org.opencontainers.image.base.name="${BASE}"
COPY --chmod=755 docker/triton.sh /opt/mlites/triton.sh
# Triton copies models from S3 to below /tmp before it loads them; the root file system may be read-only.
ENV HOME=/tmp ORT_DISABLE_TELEMETRY=1
USER 1000:1000
WORKDIR /tmp
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["/opt/mlites/triton.sh"]
