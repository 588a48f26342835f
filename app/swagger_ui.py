"""`/docs`: Swagger UI from the service itself. The page needs no other host, and its policy allows none."""

import re
from base64 import b64encode
from hashlib import sha256

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
POLICY = (
    "default-src 'none'; script-src 'self' {hashes}; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    """Serve the page and its assets, and redirect `/` to it."""
    assets = StaticFiles(packages=[("fastapi_offline", "static")])

    @app.get("/docs", include_in_schema=False)
    async def show_documentation(request: Request) -> HTMLResponse:
        root = request.scope["root_path"].rstrip("/")
        page = get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=app.title,
            swagger_js_url=f"{root}/docs/swagger-ui-bundle.js",
            swagger_css_url=f"{root}/docs/swagger-ui.css",
            swagger_favicon_url=f"{root}/docs/favicon.png",
            swagger_ui_parameters=app.swagger_ui_parameters,
        )
        page.headers["Content-Security-Policy"] = policy_of(bytes(page.body))
        return page

    @app.get("/docs/{name}", include_in_schema=False)
    async def read_asset(name: str, request: Request) -> Response:
        response = await assets.get_response(name, request.scope)
        response.headers["Cache-Control"] = "no-cache"  # another release has other assets under the same names
        return response

    @app.get("/", include_in_schema=False)
    async def redirect_to_documentation(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{request.scope['root_path'].rstrip('/')}/docs")


def policy_of(page: bytes) -> str:
    """Return the Content-Security-Policy of a page: its inline scripts are allowed by their hashes."""
    hashes = (b64encode(sha256(script).digest()).decode() for script in INLINE_SCRIPT.findall(page))
    return POLICY.format(hashes=" ".join(f"'sha256-{value}'" for value in hashes))
