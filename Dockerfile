# Bases are pinned to a patch release. For a digest add @sha256:…, which `docker buildx imagetools inspect IMAGE` prints.
FROM python:3.13.11-slim-bookworm AS dependencies
RUN python -m venv --without-pip /venv
COPY requirements.lock .
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /venv/bin/python install --disable-pip-version-check --require-hashes --requirement requirements.lock

FROM python:3.13.11-slim-bookworm
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    DATABASE_URL=sqlite:////data/database.db \
    SQLITE_TMPDIR=/data
# Nothing installs packages here: pip and its bundled copy are removed.
RUN pip uninstall --yes --root-user-action=ignore pip && \
    python -c "import ensurepip, shutil; shutil.rmtree(ensurepip.__path__[0])"
WORKDIR /heroes
COPY --from=dependencies /venv /venv
COPY alembic.ini ./
COPY migrations migrations
COPY app app
# /data is for a SQLite file. The user must own the folder, because SQLite keeps its write-ahead log there, and by
# SQLITE_TMPDIR what it sorts for a large index: the rest of the file system may be read-only.
RUN python -m compileall -q app migrations && useradd --uid 10001 heroes && install -d -o heroes /data
USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=60s --start-interval=1s --interval=10s --timeout=3s \
    CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8000/livez', timeout=2)"]
# The launch configuration. The Makefile has the same; a test compares them.
CMD ["uvicorn", "app.main:app", "--http", "app.protocol:StrictHTTPProtocol", "--ws", "none", "--timeout-keep-alive", "75", "--timeout-graceful-shutdown", "20", "--host", "0.0.0.0"]
