# quantkit in a container: docker build -t quantkit . && docker run --rm -v "$PWD:/work" quantkit gguf MODEL -t q4_k_m
# With CUDA for calibration: docker build --build-arg EXTRAS=run,torch --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
ARG BASE=python:3.13-slim

FROM python:3.13-slim AS wheel
WORKDIR /source
# compiled kernels, several times ggml's speed; the second stage needs no compiler
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY docs/reference/quantkit.1 ./docs/reference/
COPY termux/termux.sh ./termux/
COPY quantkit ./quantkit
RUN QUANTKIT_KERNELS=1 python -m pip wheel --no-deps --wheel-dir /wheel .

FROM ${BASE}
ARG EXTRAS=run
# the CUDA images have no Python
RUN command -v python3 >/dev/null || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
# llama.cpp's wheel needs OpenMP
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheel /wheel
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir "$(ls /wheel/*.whl)[${EXTRAS}]"
RUN useradd --create-home quantkit
USER quantkit
WORKDIR /work
ENTRYPOINT ["/venv/bin/quantkit"]
