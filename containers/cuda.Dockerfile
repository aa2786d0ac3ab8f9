# For NVIDIA GPUs; torch's wheels bring CUDA, the host brings the driver and nvidia-container-toolkit.
#   docker build --file containers/cuda.Dockerfile --tag geo-embed:cuda .
#   docker run --rm --gpus all --ipc host --user "$(id -u):$(id -g)" --volume "$PWD:/work" geo-embed:cuda extract --split all
FROM python:3.11-slim-bookworm

ARG EXTRAS=""

# Triton, behind finetune.compile, needs a C compiler when it runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY geo_embed geo_embed
RUN pip install --no-cache-dir --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"

ENV HOME=/tmp HF_HOME=/work/.huggingface \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["geo"]
CMD ["--help"]
