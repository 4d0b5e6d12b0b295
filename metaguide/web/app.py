"""The application: endpoints and pages over a `Service`."""

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from metaguide.data.catalogue import Product, Question, Review
from metaguide.data.histories import History
from metaguide.guide import AdaptedGuide
from metaguide.tasks import TASKS
from metaguide.web import schemas
from metaguide.web.errors import Refusal, invalid, response_to
from metaguide.web.guard import LOOPBACK, guarded
from metaguide.web.metrics import Metrics
from metaguide.web.schemas import Limits, check_examples
from metaguide.web.service import Service
from metaguide.web.teaching import content_id

PATHS = {
    "classification": "/v1/classify",
    "sentiment": "/v1/sentiment",
    "questions": "/v1/answer",
    "recommendation": "/v1/recommend",
}
"""The endpoint of each task."""

PAGES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/app.js": ("app.js", "text/javascript"),
    "/strings.js": ("strings.js", "text/javascript"),
    "/docs.js": ("docs.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""The static files, by path."""


def create_app(
    guide: AdaptedGuide,
    *,
    token: str = "",
    limits: Limits = Limits(),
    hosts: Collection[str] = LOOPBACK,
    save_to: Path | None = None,
    ready: Callable[[float], None] = lambda seconds: None,
) -> FastAPI:
    """Return an application that serves an adapted guide.

    Args:
        guide: the guide.
        token: what requests have to carry as `Authorization: Bearer`; "" if nothing.
        limits: the limits of requests.
        hosts: the names in `Host` headers that are answered; "*" answers all.
        save_to: folder that a taught guide is saved to, if it may be saved.
        ready: called with the seconds that compilation took, before the first request.
    """
    metrics = Metrics()
    service = Service(guide, limits, metrics, save_to)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        begun = time.perf_counter()
        async with service.running():
            ready(time.perf_counter() - begun)
            yield

    error: dict[str, Any] = {"model": schemas.ErrorOut}
    app = FastAPI(
        title="metaguide",
        description=f"A shopping guide that adapted to {guide.domain.name}.",
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
        lifespan=lifespan,
        responses={"default": error, 422: error},
    )
    app.add_middleware(guarded, hosts=hosts, token=token, limits=limits, metrics=metrics)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _unknown)
    _add_pages(app, metrics)
    # The guard checks the token; this tells clients of it.
    router = APIRouter(dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [])
    _add_shop(router, service)
    _add_tasks(router, service)
    _add_lessons(router, service)
    app.include_router(router)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return response_to(error)


async def _malformed(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        said = "the body is no JSON"
        return response_to(Refusal(400, "bad_json", said, "check its quotes and commas"))
    head, *rest = first["loc"]
    if rest and rest[0] in TASKS:
        rest = rest[1:]  # the task by which the kind of lesson was told, which is no field
    field = str(head) + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in rest)
    return response_to(invalid(field, f"is invalid: {first['msg']}"))


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {
        404: ("not_found", "there is nothing at this path"),
        405: ("method", "this path takes another method"),
        400: ("bad_json", "the body cannot be read"),
    }
    code, said = known.get(error.status_code, ("http", str(error.detail)))
    hint = "send JSON in UTF-8" if code == "bad_json" else "see /docs"
    response = response_to(Refusal(error.status_code, code, said, hint))
    response.headers.update(error.headers or {})  # such as Allow
    return response


def _add_pages(app: FastAPI, metrics: Metrics) -> None:
    """Add the page, its files, and what monitors the server."""

    def add(path: str, content: bytes, kind: str) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'

        async def file(request: Request) -> Response:
            headers = {"ETag": tag, "Cache-Control": "no-cache"}
            if request.headers.get("if-none-match") == tag:
                return Response(status_code=304, headers=headers)
            return Response(content, headers=headers, media_type=kind)

        app.add_api_route(path, file, methods=["GET", "HEAD"], include_in_schema=False)

    folder = resources.files("metaguide.web") / "static"
    for path, (name, kind) in PAGES.items():
        add(path, (folder / name).read_bytes(), kind)

    @app.get("/health", summary="Whether the server answers")
    async def health() -> schemas.Health:
        return schemas.Health()

    # What watches a server often asks for the headers alone.
    app.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)

    @app.get("/metrics", summary="Counts for Prometheus", response_class=PlainTextResponse)
    async def counts() -> PlainTextResponse:
        return PlainTextResponse(metrics.render(), media_type="text/plain; version=0.0.4")


def _add_shop(app: APIRouter, service: Service) -> None:
    """Add what tells of the guide and its products."""

    @app.get("/v1/guide", summary="What the guide answers")
    async def about() -> schemas.GuideOut:
        guide = service.guide
        tasks = {}
        for task, path in PATHS.items():
            adapted, serving = guide.adapted.get(task), guide.guide.serving.get(task)
            tasks[task] = schemas.TaskOut(
                available=adapted is not None,
                path=path,
                method=serving and serving.method,
                examples=len(adapted.chosen) if adapted else 0,
                notes=list(guide.notes.get(task, ())),
            )
        return schemas.GuideOut(
            domain=guide.domain.name,
            shots=guide.shots,
            tasks=tasks,
            categories=list(guide.categories),
            products=len(service.shelf),
            taught=service.taught,
            can_save=service.can_save,
            limits=service.limits._asdict(),
        )

    # Not `async`: FastAPI calls it in a thread, since a catalogue may be large.
    @app.get("/v1/products", summary="Search the catalogue by words")
    def search(
        query: Annotated[str, Query(max_length=200)] = "",
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> list[schemas.ProductOut]:
        return [schemas.ProductOut(**shown(one)) for one in service.shelf.find(query, limit)]

    @app.get(
        "/v1/products/{id:path}/picture",
        summary="The picture of a product",
        response_class=Response,
        responses={200: {"content": {"image/png": {}}}},
    )
    def picture(id: str) -> Response:
        png = service.shelf.picture(id)
        if png is None:
            hint = "GET /v1/products says which products have one"
            raise Refusal(404, "no_picture", "there is no such picture", hint, "id")
        headers = {"Cache-Control": "private, max-age=3600"}
        return Response(png, headers=headers, media_type="image/png")


def _add_tasks(app: APIRouter, service: Service) -> None:
    """Add an endpoint for each task."""
    limits = service.limits

    @app.post(PATHS["classification"], summary=TASKS["classification"].summary)
    async def classify(
        products: Annotated[list[schemas.ProductIn], Body()],
    ) -> list[schemas.CategoryOut]:
        check_examples(limits, products, limits.examples, "body")
        examples = [_product(service, one, f"body[{n}]") for n, one in enumerate(products)]
        return [
            schemas.CategoryOut(
                category=one.category,
                probability=one.probabilities[one.category],
                probabilities=dict(one.probabilities),
                read_to_the_end=is_read,
            )
            for one, is_read in await service.ask("classification", examples)
        ]

    @app.post(PATHS["sentiment"], summary=TASKS["sentiment"].summary)
    async def feel(
        reviews: Annotated[list[schemas.ReviewIn], Body()],
    ) -> list[schemas.SentimentOut]:
        check_examples(limits, reviews, limits.examples, "body")
        examples = [Review("", one.text) for one in reviews]
        return [
            schemas.SentimentOut(**one._asdict(), read_to_the_end=is_read)
            for one, is_read in await service.ask("sentiment", examples)
        ]

    @app.post(PATHS["questions"], summary=TASKS["questions"].summary)
    async def answer(
        questions: Annotated[list[schemas.QuestionIn], Body()],
    ) -> list[schemas.AnswerOut]:
        check_examples(limits, questions, limits.examples, "body")
        examples = [
            Question("", one.question, _passage(service, one, f"body[{n}]"))
            for n, one in enumerate(questions)
        ]
        answers = await service.ask("questions", examples)
        return [schemas.AnswerOut(**one._asdict()) for one, _ in answers]

    @app.post(PATHS["recommendation"], summary=TASKS["recommendation"].summary)
    async def recommend(
        histories: Annotated[list[schemas.HistoryIn], Body()],
        top: Annotated[int, Query(ge=1, le=limits.top)] = min(10, limits.top),
    ) -> list[schemas.RankingOut]:
        check_examples(limits, histories, limits.examples, "body")
        for row, one in enumerate(histories):
            if len(one.products) > limits.history:
                where, hint = f"body[{row}].products", f"send the last {limits.history}"
                error = f"{where} has {len(one.products)} products"
                raise Refusal(422, "too_many", error, hint, where)
        known = [[id for id in one.products if id in service.shelf] for one in histories]
        examples = [
            History(one.user, tuple(ids)) for one, ids in zip(histories, known, strict=True)
        ]
        found = await service.ask("recommendation", examples)
        return [
            schemas.RankingOut(
                user=one.user,
                by=one.by,
                products=[
                    schemas.RankedOut(**shown(service.shelf[id]), score=float(score))
                    for id, score in zip(one.products[:top], one.scores[:top], strict=True)
                ],
                unknown=[id for id in dict.fromkeys(given.products) if id not in service.shelf],
            )
            for (one, _), given in zip(found, histories, strict=True)
        ]


def _add_lessons(app: APIRouter, service: Service) -> None:
    """Add what teaches the guide."""

    @app.post("/v1/teach", summary="Teach the guide examples, and measure it on others")
    async def teach(given: Annotated[schemas.LessonIn, Body()]) -> schemas.LessonOut:
        check_examples(service.limits, given.examples, service.limits.taught, "examples")
        rows = [_labelled(service, one, f"examples[{n}]") for n, one in enumerate(given.examples)]
        # An example that comes twice could be taught and measured on; its last label counts.
        last = {one.id: (one, given.examples[n].held_back) for n, one in enumerate(rows)}
        examples, marks = zip(*last.values(), strict=True)
        found = await service.teach(given.task, examples, marks, given.seed)
        outcomes = dict(zip(last, found.outcomes, strict=True))
        held = [one for one in found.outcomes if one.held_back]
        return schemas.LessonOut(
            task=given.task,
            taught=len(examples) - len(held),
            held_back=len(held),
            before=share([one.before for one in held]),
            after=share([one.after for one in held]),
            examples=[schemas.ExampleOut(**outcomes[one.id]._asdict()) for one in rows],
            notes=list(found.notes),
            seconds=found.seconds,
        )

    @app.post("/v1/teach/reset", summary="Forget all lessons")
    async def reset(given: schemas.Nothing) -> schemas.Done:
        del given
        await service.reset()
        return schemas.Done()

    @app.post("/v1/teach/save", summary="Save the guide with its lessons")
    async def save(given: schemas.Nothing) -> schemas.Done:
        del given
        await service.save()
        return schemas.Done()


def share(outcomes: Sequence[bool | None]) -> float | None:
    """Return the share of right answers; None if there are none."""
    known = [one for one in outcomes if one is not None]
    return sum(known) / len(known) if known else None


def shown(product: Product) -> dict[str, Any]:
    """Return the fields of a product that clients see."""
    names = ("id", "title", "description", "category")
    fields = {name: getattr(product, name) for name in names}
    return {**fields, "has_picture": product.image is not None}


def _product(service: Service, given: schemas.ProductIn, where: str) -> Product:
    """Return the product of the catalogue that is named, or one of the texts that are given.

    Raises:
        Refusal: there is no such product, or it has both or neither.
    """
    texts = given.title.strip() or given.description.strip() or given.attributes
    if bool(given.id) == bool(texts):
        raise invalid(where, "needs an id of the catalogue, or a title, and not both")
    if given.id:
        return _of_shelf(service, given.id, f"{where}.id")
    id = content_id(given.title, given.description, given.attributes)
    return Product(id, given.title, given.description, None, given.attributes)


def _passage(service: Service, given: schemas.QuestionIn, where: str) -> str:
    """Return the text of a question: its own, or the description of the product that it names.

    Raises:
        Refusal: there is no such product, it has no description, or there are both or neither.
    """
    if bool(given.product) == (given.text is not None):
        raise invalid(where, "needs a text, or a product of the catalogue, and not both")
    if given.text is not None:
        return given.text
    description = _of_shelf(service, given.product, f"{where}.product").description
    if not description:
        raise invalid(f"{where}.product", "has no description", "send a text")
    most = service.limits.characters - len(given.question)
    if len(description) > most:
        error = f"the description of {where}.product has more than {most} characters"
        raise Refusal(422, "too_long", error, "send a part of it as the text", f"{where}.product")
    return description


def _of_shelf(service: Service, id: str, where: str) -> Product:
    """Return a product of the catalogue.

    Raises:
        Refusal: there is no such product.
    """
    if id not in service.shelf:
        error = f"{where} names a product that the catalogue does not have: {id[:60]!r}"
        hint = "GET /v1/products?query= finds products"
        raise Refusal(422, "unknown_product", error, hint, where)
    return service.shelf[id]


def _labelled(
    service: Service,
    given: schemas.TaughtProduct | schemas.TaughtReview | schemas.TaughtQuestion,
    where: str,
) -> Product | Review | Question:
    """Return an example as the guide adapts to it."""
    if isinstance(given, schemas.TaughtProduct):
        found = _product(service, given, where)
        return replace(found, category=given.category)
    if isinstance(given, schemas.TaughtReview):
        return Review(content_id(given.text), given.text, sentiment=given.sentiment)
    text, answer = _passage(service, given, where), None
    if given.answer is not None:
        answer = start, end = given.answer[0], given.answer[1]
        if not (0 <= start < end <= len(text) and text[start:end].strip()):
            raise invalid(f"{where}.answer", "is no part of the text with a word in it")
    return Question(content_id(given.question, text), given.question, text, answer)
