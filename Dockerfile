# jseg serve on a CPU, see docs/serve.md:
#   docker build --build-arg BUILDKIT_SANDBOX_HOSTNAME=jseg -t jseg-serve .
#   docker run --rm --hostname jseg -p 127.0.0.1:8000:8000 jseg-serve
FROM python:3.11-slim-bookworm

# Jittor compiles the model's operations with g++; the base image has Python's headers
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

COPY setup.py README.md /opt/jseg/
COPY jseg /opt/jseg/jseg
COPY configs /opt/jseg/configs
RUN pip install --no-cache-dir '/opt/jseg[serve]'

RUN useradd --create-home jseg
USER jseg
WORKDIR /home/jseg

ARG CHECKPOINT=weights/segnext_tiny_camvid.safetensors
COPY ${CHECKPOINT} /srv/model.safetensors
# Compile now what serving needs. Jittor's cache is named by host name, kernel and CPU: where one of these differs from
# those of `docker run`, the first start compiles again.
RUN python -c "import numpy as np; from jseg import InferenceSegmentor as Model; Model('/srv/model.safetensors').infer(np.zeros((64, 64, 3), np.uint8), with_prob=True)"

EXPOSE 8000
HEALTHCHECK --start-period=10m CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["jseg", "serve", "--host", "0.0.0.0"]
CMD ["/srv/model.safetensors"]
