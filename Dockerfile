# The demo in a container, and the image of MLproject's docker backend and of Kubernetes jobs: docs/containers.md
FROM python:3.11-slim

# PyPI's torch is the CUDA build; an empty argument takes it: docker build --build-arg PIP_EXTRA_INDEX_URL= .
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /opt/safemax
COPY requirements.txt ./
RUN pip install --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY safemax ./safemax
COPY pipelines ./pipelines
COPY hpo ./hpo
# A container may run as any user (docker run --user), who has no name and no home then. The second folder is where MLflow's
# docker backend works.
RUN pip install --no-deps . && useradd --create-home safemax && install --directory --mode=1777 /work /mlflow/projects/code
ENV USER=safemax HOME=/tmp
USER safemax
WORKDIR /work
CMD ["safemax", "demo"]
