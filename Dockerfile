# A server for one registered model. Build it where the repository is; the model is not part of the image:
#   docker build -t tfmammo-serving .
#   docker run --rm -p 127.0.0.1:5001:5001 -v "$PWD/model:/model:ro" tfmammo-serving
# `model` is a version's folder, as `mlflow artifacts download -u models:/tfmammo-pipeline@best -d model` fetches it.
FROM python:3.11-slim
RUN useradd --create-home server
WORKDIR /opt/tfmammo
COPY setup.py README.md LICENSE requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY tfmammo tfmammo
COPY configs configs
COPY train train
COPY evaluate evaluate
RUN pip install --no-cache-dir --no-deps .
USER server
WORKDIR /srv
ENV MLFLOW_DISABLE_TELEMETRY=true
EXPOSE 5001
HEALTHCHECK --start-period=120s CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5001/health', timeout=5)"
# Inside the container all addresses; -p above says who reaches it.
CMD ["python", "-m", "tfmammo.apps.serving", "run", "--model", "/model", "--host", "0.0.0.0", "--port", "5001"]
