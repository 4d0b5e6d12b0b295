"""The task types that a guide serves, one file each; a new one takes a file and a line here."""

from collections.abc import Mapping, Sequence

from metaguide.data.catalogue import Domain
from metaguide.models.encoder import Encoder
from metaguide.models.guide import GuideModel
from metaguide.tasks.classification import CLASSIFICATION, Category
from metaguide.tasks.question_answering import QUESTIONS, Answer
from metaguide.tasks.recommendation import RECOMMENDATION, Ranking
from metaguide.tasks.sentiment import SENTIMENT, Sentiment
from metaguide.tasks.serving import Adapted, HeldBack, Reading, Server, Serving
from metaguide.tasks.task import Shape, Task
from metaguide.types import TaskDistribution

__all__ = [
    "CLASSIFICATION",
    "QUESTIONS",
    "RECOMMENDATION",
    "SENTIMENT",
    "TASKS",
    "Adapted",
    "Answer",
    "Category",
    "HeldBack",
    "Ranking",
    "Reading",
    "Sentiment",
    "Server",
    "Serving",
    "Shape",
    "Task",
    "guide_model",
    "task_distributions",
]

TASKS: Mapping[str, Task] = {
    task.name: task for task in (CLASSIFICATION, SENTIMENT, QUESTIONS, RECOMMENDATION)
}
"""All task types, keyed by name, in the order of the tables."""


def guide_model(encoder: Encoder, way: int = 10) -> GuideModel:
    """Return the model of a guide: an encoder, and a head for each task.

    Args:
        encoder: the encoder, such as `metaguide.models.encoder.transformer(vocabulary)`.
        way: largest number of classes in a classification episode.
    """
    return GuideModel(encoder, {task.name: task.head for task in TASKS.values()}, way)


def task_distributions(
    model: GuideModel,
    domains: Sequence[Domain],
    reading: Reading,
    shape: Shape,
    tasks: Sequence[str] = tuple(TASKS),
    always: Mapping[str, Sequence[str]] | None = None,
    scored: bool = True,
) -> dict[str, TaskDistribution]:
    """Build the episodes of every task for which at least one domain has examples.

    A task that needs token states is left out if the encoder has none.

    Args:
        model: the guide's model.
        domains: domains to draw episodes from.
        reading: how the guide reads texts and pictures.
        shape: sizes of the episodes.
        tasks: names of the tasks to build.
        always: for each domain, the categories that all its classification episodes contain.
        scored: whether answers will be scored; if not, their scores are not computed.

    Returns:
        Task distributions, keyed by task. Their data are NumPy arrays, which the caller puts on
        devices.

    Raises:
        EpisodeError: a domain has fewer classes or examples than `shape` asks for.
        ValueError: unknown task.
    """
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown:
        raise ValueError(f"unknown task {unknown[0]!r}; there are {', '.join(TASKS)}")
    made: dict[str, TaskDistribution] = {}
    for task in map(TASKS.__getitem__, tasks):
        having = [domain for domain in domains if task.has_examples(domain)]
        if having and not (task.needs_states and model.encoder.text is None):
            made[task.name] = task.episodes(model, having, reading, shape, always or {}, scored)
    return made
