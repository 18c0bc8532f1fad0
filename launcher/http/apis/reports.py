"""`POST /v1/reports`: somebody says that a picture should not be there. What comes of it is for people to decide."""

from __future__ import annotations

import time
from typing import Annotated, Self

from fastapi import Body, FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, JsonValue, ModelWrapValidatorHandler, PrivateAttr, model_validator
from starlette.responses import Response

from engine.errors import ArgumentError, error_from_code
from launcher.audit.fingerprint import MOST_BYTES
from launcher.audit.reports import Reports
from launcher.http.answers.errors import JsonResponse
from launcher.http.answers.schemas import PICTURE, answer, constant, integer, object_schema, text
from launcher.http.apis.openai_body import as_form
from launcher.http.apis.openai_parts import Picture
from launcher.http.uploads.pictures import Pictures
from launcher.messages.configs import HttpConfig

PATH = "/v1/reports"
_LONGEST = {"request_id": 128, "reason": 4000, "contact": 320}  # characters
_NONE_TAKEN = "this server takes no reports: it was started without --audit-log"
_ANSWERS = answer(
    object_schema(
        {
            "id": text("Of the report, for questions about it.", "report-5f2c0a9d41b7e836"),
            "object": constant("report"),
            "created": integer("When, in seconds since 1970.", 1_790_000_000),
        }
    ),
    404,
    429,
    503,
)
_BODY = Body(
    openapi_examples={
        "by a picture": {"value": {"image": PICTURE, "reason": "It shows me, and I was not asked."}},
        "by a request": {"value": {"request_id": "7f3c9a", "reason": "It is not what the prompt says."}},
    }
)


def _most(name: str) -> dict[str, JsonValue]:
    return {"maxLength": _LONGEST[name]}


class ReportRequest(BaseModel, extra="forbid", strict=True):
    """The body of `POST /v1/reports`, as JSON or as a form. It names a picture by itself, by its request, or both."""

    reason: str = Field(description="What is wrong with the picture, in words.", json_schema_extra=_most("reason"))
    image: Picture = Field(
        None,
        description="The picture, a PNG, JPEG or WebP file, or a copy of it: in a form a file, in JSON base64 or data "
        "URLs. Default: none.",
    )
    request_id: str | None = Field(
        None,
        description="The X-Request-ID of the answer that had the picture. Default: none.",
        json_schema_extra=_most("request_id"),
    )
    contact: str | None = Field(
        None,
        description="Where whoever reports it can be reached. Default: nowhere.",
        json_schema_extra=_most("contact"),
    )

    _pictures: Pictures = PrivateAttr(default_factory=Pictures)

    @model_validator(mode="wrap")
    @classmethod
    def _take_picture(cls, given: object, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(given, dict):
            return validate(given)
        pictures, plain = Pictures(), {**given, "mask": None}
        pictures.take(plain, {})
        body = validate(plain | ({"mask": given["mask"]} if "mask" in given else {}))
        body._pictures = pictures
        return body

    @property
    def pictures(self) -> Pictures:
        """The picture, in whose field something else stands."""
        return self._pictures


def add_report_route(app: FastAPI, config: HttpConfig, form_route: type[APIRoute]) -> None:
    """Add the route. form_route: what reads forms with pictures."""
    reports = None
    if config.audit_log is not None:
        reports = Reports(config.audit_log, keep_pictures=config.audit_content)

    async def report_picture(body: Annotated[ReportRequest, _BODY], request: Request) -> Response:
        """Report a picture of this server's, for example one that shows somebody who was not asked. Somebody who runs
        the server reads it; nothing is done at once.

        Pictures are sent within JSON, as here, or as a file of a form:
        `curl -F image=@picture.png -F reason='It shows me' …/v1/reports`."""
        if reports is None:
            raise error_from_code("not_found", _NONE_TAKEN)
        said = {name: (getattr(body, name) or "").strip() for name in _LONGEST}
        for name, most in _LONGEST.items():
            if len(said[name]) > most:
                told = (
                    f"{name} must be at most {most} characters, got {len(said[name])}"  # and not what, which is logged
                )
                raise ArgumentError(told, parameter=name)
        if not said["reason"]:
            raise ArgumentError("reason must say what is wrong with the picture", parameter="reason")
        if not said["request_id"] and "image" not in body.pictures:
            raise ArgumentError("a report needs an image, or the request_id of its answer", parameter="image")
        files = await body.pictures.files(MOST_BYTES)
        report = await reports.take(
            request_id=said["request_id"] or None, picture=files.pop("image", None), reason=said["reason"],
            contact=said["contact"] or None, key=request.state.key_name,
        )  # fmt: skip
        return JsonResponse({"id": report, "object": "report", "created": int(time.time())})

    app.router.add_api_route(
        PATH, report_picture, methods=["POST"], responses=_ANSWERS, response_class=Response,
        route_class_override=form_route,
        openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": as_form(ReportRequest)}}}},
    )  # fmt: skip
