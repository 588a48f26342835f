"""Errors: what the client is told when a request can't be answered."""

from fastapi import HTTPException


class Unavailable(HTTPException):
    """503: the service can't answer now, and the same request can work later."""

    def __init__(self, detail: str | None) -> None:
        super().__init__(status_code=503, detail=detail, headers={"Retry-After": "1"})
