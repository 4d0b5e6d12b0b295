"""Refusals: every error that a client sees, as one JSON object."""

import json
from typing import Any

from starlette.responses import Response


class Refusal(Exception):
    """A request that is not answered.

    Attributes:
        status: the HTTP status.
        code: a short stable name, which the page translates.
        error: what is wrong, in one sentence.
        hint: what to do instead.
        field: the field of the request that is at fault, if it is one.
        retry_after: seconds after which to try again, if that may help.
    """

    def __init__(
        self,
        status: int,
        code: str,
        error: str,
        hint: str = "",
        field: str = "",
        retry_after: int = 0,
    ):
        super().__init__(error)
        self.status, self.code, self.error = status, code, error
        self.hint, self.field, self.retry_after = hint, field, retry_after


def response_to(refusal: Refusal) -> Response:
    """Return a refusal as a response."""
    said: dict[str, Any] = {"error": refusal.error, "hint": refusal.hint, "code": refusal.code}
    if refusal.field:
        said["field"] = refusal.field
    headers = {"Retry-After": str(refusal.retry_after)} if refusal.retry_after else {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(json.dumps(said), refusal.status, headers, media_type="application/json")


def task_lacks(task: str, notes: tuple[str, ...]) -> Refusal:
    """Return the refusal of a task that the guide does not answer."""
    reason = "; ".join(notes) or "it did not adapt to this task"
    return Refusal(
        409, "task_unavailable", f"this guide has no answers of {task}: {reason}", "GET /v1/guide"
    )


def invalid(field: str, error: str, hint: str = "see /docs") -> Refusal:
    """Return the refusal of a field."""
    return Refusal(422, "invalid", f"{field} {error}", hint, field)
