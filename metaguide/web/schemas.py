"""What the endpoints read and return, and the limits of a request."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StringConstraints

from metaguide.web.errors import Refusal


class Limits(NamedTuple):
    """The limits of a server.

    Attributes:
        body: bytes of a request's body.
        examples: examples of a request.
        characters: characters of all the texts of an example.
        history: products of a history.
        top: products of a ranking.
        taught: examples of a lesson, and examples of a task that the guide may adapt to in all.
        batch: examples that are answered at once.
        queue: examples of a task that wait to be answered.
        wait: seconds that a request waits for others to be answered with.
        seconds: seconds until a request is given up.
        lesson_seconds: seconds until a lesson is given up.
    """

    body: int = 1 << 20
    examples: int = 64
    characters: int = 8_000
    history: int = 1_000
    top: int = 100
    taught: int = 500
    batch: int = 64
    queue: int = 1_024
    wait: float = 0.002
    seconds: float = 30.0
    lesson_seconds: float = 300.0


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ProductIn(_In):
    """A product of the catalogue by its id, or another one by its texts."""

    id: str = Field("", description="id of a product of the catalogue")
    title: str = Field("", description="title of another product")
    description: str = ""
    attributes: dict[str, str] = {}


class ReviewIn(_In):
    """A review."""

    text: str


class QuestionIn(_In):
    """A question, and the passage to search: a text, or the description of a product."""

    question: str
    text: str | None = Field(None, description="the passage")
    product: str = Field("", description="id of a product, whose description is the passage")


class HistoryIn(_In):
    """The products that a user took, the oldest first; those of no catalogue are not read."""

    user: str = "user"
    products: list[str]


class Nothing(_In):
    """An empty object: `{}`."""


HeldBack = Annotated[
    StrictBool | None,
    Field(description="true to be measured on, false to be taught, null to be drawn"),
]


class TaughtProduct(ProductIn):
    """A product with its category."""

    category: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    held_back: HeldBack = None


class TaughtReview(ReviewIn):
    """A review with its sentiment."""

    sentiment: Literal["positive", "negative"]
    held_back: HeldBack = None


class TaughtQuestion(QuestionIn):
    """A question with its answer."""

    answer: Annotated[
        list[StrictInt] | None,
        Field(
            min_length=2,
            max_length=2,
            description="[start, end] in characters of the text; null if it has no answer",
        ),
    ]
    held_back: HeldBack = None


class ProductLesson(_In):
    """Products to learn categories from."""

    task: Literal["classification"]
    examples: list[TaughtProduct]
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 32)] = 0


class ReviewLesson(_In):
    """Reviews to learn their sentiment from."""

    task: Literal["sentiment"]
    examples: list[TaughtReview]
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 32)] = 0


class QuestionLesson(_In):
    """Questions to learn answers from."""

    task: Literal["questions"]
    examples: list[TaughtQuestion]
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 32)] = 0


LessonIn = Annotated[ProductLesson | ReviewLesson | QuestionLesson, Field(discriminator="task")]


ReadToTheEnd = Annotated[
    bool, Field(description="false if the end of the text was not read, or only in part")
]


class CategoryOut(BaseModel):
    """The predicted category of a product."""

    category: str
    probability: float
    probabilities: dict[str, float]
    read_to_the_end: ReadToTheEnd


class SentimentOut(BaseModel):
    """The predicted sentiment of a review; `positive` is a probability."""

    sentiment: Literal["positive", "negative"]
    positive: float
    stars: float | None
    read_to_the_end: ReadToTheEnd


class AnswerOut(BaseModel):
    """The answer and its place, in characters of the passage; null if it has none."""

    text: str | None
    span: tuple[int, int] | None


class ProductOut(BaseModel):
    """A product of the catalogue."""

    id: str
    title: str
    description: str
    category: str | None
    has_picture: bool


class RankedOut(ProductOut):
    """A product of a ranking; only the order of scores has a meaning."""

    score: float


class RankingOut(BaseModel):
    """Products for a user, best first."""

    user: str
    by: Literal["history", "no history"]
    products: list[RankedOut]
    unknown: list[str] = Field(description="products of the history that the catalogue has not")


class TaskOut(BaseModel):
    """One task of the guide; `notes` say what is lacking."""

    available: bool
    path: str
    method: str | None
    examples: int
    notes: list[str]


class GuideOut(BaseModel):
    """What the guide answers, and within which limits."""

    domain: str
    shots: int
    tasks: dict[str, TaskOut]
    categories: list[str]
    products: int
    taught: int
    can_save: bool
    limits: dict[str, int | float]


class ExampleOut(BaseModel):
    """An example of a lesson; the outcomes are null where it was taught."""

    held_back: bool
    before: bool | None = None
    after: bool | None = None


class LessonOut(BaseModel):
    """A lesson's accuracy on the examples held back, null if there are none."""

    task: str
    taught: int
    held_back: int
    before: float | None
    after: float | None
    examples: list[ExampleOut]
    notes: list[str]
    seconds: float


class ErrorOut(BaseModel):
    """What went wrong, and what to do instead; `code` is stable."""

    error: str
    hint: str
    code: str
    field: str | None = None


class Done(BaseModel):
    """A request that was carried out."""

    done: Literal[True] = True


class Health(BaseModel):
    """A server that answers."""

    status: Literal["ok"] = "ok"


def check_examples(limits: Limits, examples: Sequence[BaseModel], most: int, where: str) -> None:
    """Check the number of examples, and the characters of each.

    Raises:
        Refusal: there are none or too many, or one is too long or blank; it names the field.
    """
    if not 1 <= len(examples) <= most:
        raise Refusal(
            422,
            "too_many" if examples else "empty",
            f"{where} has {len(examples)} examples",
            f"send 1 to {most} at a time",
            where,
        )
    for row, one in enumerate(examples):
        # Products are ids, which have their own limit.
        sizes = {name: sum(map(len, _texts(value))) for name, value in one if name != "products"}
        if sum(sizes.values()) > limits.characters:
            longest = max(sizes, key=sizes.__getitem__)
            raise Refusal(
                422,
                "too_long",
                f"{where}[{row}] has {sum(sizes.values())} characters",
                f"send at most {limits.characters}",
                f"{where}[{row}].{longest}",
            )
        blank = [name for name, value in one if name in _asked(one) and not value.strip()]
        if blank:
            field = f"{where}[{row}].{blank[0]}"
            raise Refusal(422, "empty", f"{field} is blank", "write a text", field)


def _asked(one: BaseModel) -> tuple[str, ...]:
    """Return the fields that an example cannot be asked without."""
    if isinstance(one, QuestionIn):
        return ("question",)  # a passage without a word has no answer
    return ("title",) if isinstance(one, ProductIn) and one.title else ("text",)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from pair
