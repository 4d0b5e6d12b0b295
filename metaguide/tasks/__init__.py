"""The types of task that a guide serves, one file each; a new one is a file and a line here."""

from collections.abc import Mapping, Sequence

from metaguide.data.catalogue import Domain
from metaguide.models.encoder import Encoder
from metaguide.models.guide import GuideModel
from metaguide.tasks.classification import CLASSIFICATION, Category
from metaguide.tasks.question_answering import QUESTIONS, Answer
from metaguide.tasks.recommendation import RECOMMENDATION, Ranking
from metaguide.tasks.sentiment import SENTIMENT, Sentiment
from metaguide.tasks.serving import Adapted, Reading, Server, Serving
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
"""All types of task by name, in the order of tables."""


def guide_model(encoder: Encoder, way: int = 10) -> GuideModel:
    """Return the model of a guide: an encoder, and a head for each task.

    Args:
        encoder: such as `metaguide.models.encoder.transformer(vocabulary)`.
        way: most classes of a classification.
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
    """Build the episodes of every task that at least one of the domains has examples of.

    A task that needs token states is left out if the encoder has none.

    Args:
        model: the guide's.
        domains: what episodes are drawn from.
        reading: how the guide reads.
        shape: sizes of the episodes.
        tasks: names of those to build.
        always: by domain, categories that each of its classification episodes contains.
        scored: whether answers will be scored; without, their scores need not be worked out.

    Returns:
        Families by task; their data are numpy arrays, to be put on devices by the caller.

    Raises:
        EpisodeError: a domain has fewer classes or examples than `shape` asks for.
        ValueError: an unknown task.
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
