# Two images: `cpu`, and `cuda` (the last one, so the default), which runs on a machine without a GPU too.
#
#   docker build -t nibble .                     docker run --rm --gpus all -v /path/to/model:/models nibble --gptq
#   docker build -t nibble:cpu --target cpu .    docker run --rm -v /path/to/model:/models nibble:cpu --gptq
ARG RUST_IMAGE=rust:1.91-slim-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends binutils g++ make python3 python3-pip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /nibble
COPY . .
RUN make PROFILE=dist build && scripts/stage.sh dist /opt/cpu

FROM build AS build-cuda
RUN make CUDA=1 libtorch && scripts/stage.sh dist /opt/cuda

FROM ${DEBIAN_IMAGE} AS runtime
# All that the program and libtorch want of the system; certificates are not among it, as nothing is fetched.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir -m 777 /models
LABEL org.opencontainers.image.title="nibble" \
      org.opencontainers.image.description="Quantizes Hugging Face models with AWQ and GPTQ on one GPU or on the CPU" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0"
ENV PATH=/opt/nibble/bin:/usr/bin:/bin \
    HOME=/tmp
# Whoever owns the mounted model says so with --user; any number will do.
USER 1000:1000
WORKDIR /models
ENTRYPOINT ["nibble"]

FROM runtime AS cpu
COPY --from=build /opt/cpu /opt/nibble

FROM runtime AS cuda
# For NVIDIA's container toolkit: all GPUs, the driver's CUDA and NVML.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/cuda /opt/nibble
