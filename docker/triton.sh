#!/bin/sh
# Starts Triton on a repository in S3. Arguments are handed on and win over those given here.
set -eu
: "${MLITES_REPOSITORY:?address of the model repository, e.g. s3://bucket/repository or s3://http://host:8333/bucket/repository}"
# Loads what stands in the repository now, then only what it is told to; a bad model does not keep the others out.
exec tritonserver \
    --model-repository="$MLITES_REPOSITORY" \
    --model-control-mode=explicit \
    --load-model='*' \
    --exit-on-error=false \
    --strict-readiness=false \
    --disable-auto-complete-config \
    --exit-timeout-secs=20 \
    --log-format=ISO8601 \
    --metrics-config=summary_latencies=true \
    --metrics-config=summary_quantiles=0.5:0.05,0.95:0.002,0.99:0.001 \
    "$@"
