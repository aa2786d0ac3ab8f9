# For machines without a GPU: heads, reports, submissions.
#   docker build --file containers/cpu.Dockerfile --tag geo-embed:cpu .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" geo-embed:cpu demo
FROM python:3.11-slim-bookworm

# Among equal versions pip takes the build for the CPU alone: it is a tenth as large.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=""

WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY geo_embed geo_embed
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url "$TORCH_INDEX" ".${EXTRAS:+[$EXTRAS]}" \
    && python -c "import sys, torch; sys.exit(torch.version.cuda and 'no CPU build of torch at ' + '$TORCH_INDEX')"

# Whoever runs it need not be root, nor have a home.
ENV HOME=/tmp HF_HOME=/work/.huggingface
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["geo"]
CMD ["--help"]
