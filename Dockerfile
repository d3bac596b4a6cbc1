# One image for the API, the worker and every other command; PostgreSQL is a container of its own (docker-compose.yml).
# tests/test_packaging.py runs what stands here.

FROM python:3.13-slim AS build
RUN pip install --no-cache-dir uv==0.13.9
ENV UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /srv/headroom
# The libraries first: they change less often than what is ours.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --frozen --no-dev --no-install-project
COPY app app
COPY migrations migrations
COPY docker docker
RUN uv sync --frozen --no-dev

FROM python:3.13-slim
# LightGBM is linked against OpenMP, which the slim image leaves out.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home headroom \
    && install --directory --owner=headroom --group=headroom --mode=0700 /var/lib/headroom
WORKDIR /srv/headroom
COPY --from=build /srv/headroom /srv/headroom
ENV PATH=/srv/headroom/.venv/bin:$PATH PYTHONUNBUFFERED=1 HEADROOM_HOST=0.0.0.0 HEADROOM_DATA_DIR=/var/lib/headroom
USER headroom
VOLUME /var/lib/headroom
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "docker/healthy.py"]
ENTRYPOINT ["headroom"]
CMD ["serve"]
