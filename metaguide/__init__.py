"""Meta-learning for cross-domain knowledge transfer in shopping.

`metaguide.load` reads a trained guide, or one that was adapted and saved; `metaguide.from_encoder`
builds one on a pretrained encoder. Both need `pip install 'metaguide[guide]'`. Learners
(`metaguide.learners`), their problems (`metaguide.problems`), the inner loop
(`metaguide.inner_loop`) and learned optimizers (`metaguide.optimizers`) need the base install
alone.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metaguide import inner_loop, learners, optimizers, problems
    from metaguide.data.histories import History
    from metaguide.guide import AdaptedGuide, Guide, from_encoder, load
    from metaguide.types import Batch, Episode, Learner, Problem, TaskDistribution

__all__ = [
    "AdaptedGuide",
    "Batch",
    "Episode",
    "Guide",
    "History",
    "Learner",
    "Problem",
    "TaskDistribution",
    "from_encoder",
    "inner_loop",
    "learners",
    "load",
    "optimizers",
    "problems",
]

_LAZY = {
    "AdaptedGuide": "metaguide.guide",
    "Batch": "metaguide.types",
    "Episode": "metaguide.types",
    "Guide": "metaguide.guide",
    "History": "metaguide.data.histories",
    "Learner": "metaguide.types",
    "Problem": "metaguide.types",
    "TaskDistribution": "metaguide.types",
    "from_encoder": "metaguide.guide",
    "inner_loop": "metaguide.inner_loop",
    "learners": "metaguide.learners",
    "load": "metaguide.guide",
    "optimizers": "metaguide.optimizers",
    "problems": "metaguide.problems",
}
"""The modules of the names that are imported on first use."""


def __getattr__(name: str) -> Any:
    """Import a heavy name, or one that needs an extra, on first use.

    Raises:
        ImportError: a library of the extra `guide` is missing.
    """
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_LAZY[name])
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __name__:
            raise
        raise ImportError(
            f"metaguide.{name} needs {error.name}, which is not installed:"
            " run pip install 'metaguide[guide]'"
        ) from error
    value = module if module.__name__ == f"{__name__}.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the names of the module, those too that are imported on first use."""
    return sorted({*globals(), *__all__})
