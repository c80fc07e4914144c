# Rekindle on a machine with an NVIDIA GPU:
#   docker build -t rekindle .
#   docker run --gpus all -p 7860:7860 -v "$PWD/workspace:/workspace" rekindle
# The address with its token is printed at the start. Images, models and runs belong in /workspace.
FROM python:3.12-slim-bookworm

# tini passes signals on and buries finished trainers; gcc is what torch.compile and triton call.
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/rekindle
COPY pyproject.toml README.md LICENSE app.py ./
COPY gui ./gui
COPY trainer ./trainer
COPY presets ./presets
RUN pip install --no-cache-dir -e ".[optimizers,bitsandbytes,datasets]"

# The container's end must not be a run's end: on SIGTERM the page asks its runs to stop and save, and waits.
# Give it the time: docker stop --time 120.
ENV REKINDLE_STOP_RUNS_ON_EXIT=1 \
    HF_HOME=/workspace/huggingface \
    XDG_STATE_HOME=/workspace/.state \
    PYTHONUNBUFFERED=1

# What is to outlive the container is in /workspace: runs, presets, the token, downloaded models.
RUN ln -s /workspace/output output && ln -s /workspace/presets presets/user
VOLUME /workspace
EXPOSE 7860
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --start-period=60s \
    CMD python -c "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=5)"
ENTRYPOINT ["tini", "--"]
CMD ["sh", "-c", "mkdir -p /workspace/output /workspace/presets && exec python app.py --listen 0.0.0.0 --headless"]
