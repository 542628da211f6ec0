# torch-dent with the extras that its commands need, at the versions with which the tests passed:
#
#     python -m build && docker build -t torch-dent .
#     docker run --rm torch-dent demo
#     docker run --rm --gpus all -v "$PWD:/work" torch-dent evaluate --device cuda ...
#
# `dent` runs as a user without rights, in /work. The compiler is for `Performance(compile=True)`.
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

COPY constraints.txt dist/*.whl /tmp/
RUN wheel=$(ls /tmp/torch_dent-*.whl) \
    && pip install --no-cache-dir -c /tmp/constraints.txt "$wheel[all]" \
    && rm /tmp/constraints.txt "$wheel" \
    && useradd --create-home dent \
    && install -d -o dent -g dent /work

USER dent
WORKDIR /work
ENTRYPOINT ["dent"]
CMD ["--help"]
