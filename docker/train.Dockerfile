ARG BASE

# The first two stages are the same in every Dockerfile of a step: built once, then taken from the cache.
FROM ${BASE} AS wheels
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
COPY docker/requirements docker/requirements
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi \
    && python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install -q -c constraints.txt -r docker/requirements/tools.txt \
    && /opt/tools/bin/pip wheel -q --wheel-dir /wheels -c constraints.txt \
        -r docker/requirements/deploy.txt -r docker/requirements/validate.txt -r docker/requirements/train.txt \
    && /opt/tools/bin/pip wheel -q --wheel-dir /wheels --no-deps -c constraints.txt kfp

FROM wheels AS package
COPY pyproject.toml README.md ./
COPY mlites mlites
COPY components components
COPY pipelines pipelines
RUN /opt/tools/bin/pip wheel -q --wheel-dir /package --no-deps --no-index --no-build-isolation .

FROM wheels AS install
ARG TORCH_INDEX=
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca_bundle,target=/run/secrets/ca_bundle \
    if [ -s /run/secrets/ca_bundle ]; then export PIP_CERT=/run/secrets/ca_bundle; fi \
    && /opt/tools/bin/pip wheel -q --wheel-dir /torch --find-links /wheels -c constraints.txt \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r docker/requirements/torch.txt
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS="/wheels /torch" PIP_NO_COMPILE=1 PIP_PYTHON=/opt/mlites/bin/python
RUN python3 -m venv --without-pip /opt/mlites \
    && /opt/tools/bin/pip install -q -c constraints.txt -r docker/requirements/train.txt -r docker/requirements/torch.txt \
    && /opt/tools/bin/pip install -q -c constraints.txt --no-deps kfp
COPY docker/trim.py docker/
RUN python3 docker/trim.py /opt/mlites/lib/python3.*/site-packages \
    && python3 -m compileall -q -j 0 -x torch/testing --invalidation-mode unchecked-hash /opt/mlites/lib
COPY --from=package /package /package
RUN /opt/tools/bin/pip install -q --no-deps /package/*.whl \
    && /opt/tools/bin/cyclonedx-py environment --output-reproducible \
        --output-file /opt/mlites/sbom.cdx.json /opt/mlites/bin/python \
    && for name in mlites components pipelines; do \
        python3 -m compileall -q --invalidation-mode unchecked-hash /opt/mlites/lib/python3.*/site-packages/$name; done

FROM ${BASE}
ARG BASE
ARG VERSION
ARG REVISION
ARG CREATED
LABEL org.opencontainers.image.title="mlites train" \
    org.opencontainers.image.description="Reads data, trains, compresses and exports: prepare-data, train-teacher and every pass" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.created="${CREATED}" \
    org.opencontainers.image.base.name="${BASE}"
RUN echo 'mlites:x:1000:1000::/tmp:/usr/sbin/nologin' >> /etc/passwd \
    && echo 'mlites:x:1000:' >> /etc/group
COPY --from=install /opt/mlites /opt/mlites
# Whatever is written goes below /tmp: the root file system may be read-only.
ENV PATH=/opt/mlites/bin:$PATH HOME=/tmp MLITES_HOME=/tmp/mlites \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1
USER 1000:1000
WORKDIR /tmp
CMD ["mlites", "--help"]
