"""What a guide answers in one task, as a pure function of arrays that any server can make."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tokenizers
from tokenizers import processors

from metaguide.data.pretrained_tokenizer import GuideTokenizer
from metaguide.data.tokenizer import CLS, PAD, SPECIALS, Tokenizer
from metaguide.exporting.graph import ExportError, Input
from metaguide.guide import AdaptedGuide, encoder_of
from metaguide.methods import NOTHING, Adaptation, adaptation_of
from metaguide.models.autoencoder import SIDE
from metaguide.models.bert import pool
from metaguide.pretrained import PretrainedEncoder
from metaguide.tasks import TASKS, Adapted, Reading, Server, Serving
from metaguide.tasks.classification import LABELLING as CLASSIFICATION
from metaguide.tasks.labelled import Labelling
from metaguide.tasks.problem import encode_examples
from metaguide.tasks.sentiment import LABELLING as SENTIMENT
from metaguide.types import Batch, Learner, Params, Problem

LABELLINGS: Mapping[str, Labelling] = {one.name: one for one in (CLASSIFICATION, SENTIMENT)}
"""The tasks that are exported."""

REFUSED = "its answers name parts of a passage or rank a whole catalogue, which is no fixed graph"
"""Why the others are not."""


@dataclass(frozen=True)
class Prediction:
    """One task of an adapted guide.

    Attributes:
        guide: the guide.
        task: name of the task.
    """

    guide: AdaptedGuide
    task: str

    @property
    def adapted(self) -> Adapted:
        """Return the adapted task."""
        return self.guide.adapted[self.task]

    @property
    def serving(self) -> Serving:
        """Return the parameters and the method that serve it."""
        return self.guide.guide.serving[self.task]

    @property
    def reading(self) -> Reading:
        """Return how its examples are read."""
        return self.guide.guide.reading.as_read_by(self.adaptation)

    @property
    def adaptation(self) -> Adaptation:
        """Return how it adapted."""
        return adaptation_of(self.serving.method) if self.adapted.is_adapted else NOTHING

    @cached_property
    def encoder(self) -> PretrainedEncoder | None:
        """The pretrained encoder that makes the vectors the guide reads; None if it reads none."""
        guide = self.guide.guide
        if self.reading.reader.vectors is None:
            return None
        if guide.config is None:
            raise ExportError(
                "this guide was put together by hand, and its encoder is not described; export one "
                "of load or from_encoder"
            )
        return encoder_of(Path(guide.source), guide.config, None)

    @cached_property
    def prefix(self) -> str:
        """What the guide puts before each text."""
        tokenizer = self.reading.reader.tokenizer
        if self.encoder is not None:
            return self.encoder.prefix
        return tokenizer.prefix if isinstance(tokenizer, GuideTokenizer) else ""

    def inputs(self) -> tuple[dict[str, Input], dict[str, int]]:
        """Return the inputs of `function`, and the largest sizes of their dynamic axes."""
        reading, found, limits = self.reading, {}, {}
        if reading.reader.tokenizer is not None or self.encoder is not None:
            found["tokens"] = Input(("batch", "length"), "int32")
            limits["length"] = self._length()
            if not isinstance(reading.reader.tokenizer, Tokenizer):
                found["mask"] = Input(("batch", "length"), "int32")
        if reading.reader.buckets:
            found["grams"] = Input(("batch", "ngrams"), "int32")
        if self.reads_pictures:
            found["image"] = Input(("batch", SIDE, SIDE, 3), "uint8")
            found["has_image"] = Input(("batch",), "bool")
        return found, limits

    @property
    def reads_pictures(self) -> bool:
        """Return whether its examples may have pictures that the guide reads."""
        return self.task == CLASSIFICATION.name and self.reading.images

    def _length(self) -> int:
        if self.encoder is not None:
            return self.encoder.length
        return self.reading.lengths.text

    def tokenizer(self) -> tokenizers.Tokenizer | None:
        """Return the tokenizer with all it needs to make rows of tokens; None if none are read."""
        own = self.reading.reader.tokenizer
        if isinstance(own, Tokenizer):
            core, pad = own.core, PAD
            name = SPECIALS[CLS]
            core.post_processor = processors.TemplateProcessing(
                single=f"{name} $A", special_tokens=[(name, CLS)]
            )
        elif self.encoder is not None:
            core, pad = self.encoder.tokenizer.core, self.encoder.config.pad
        elif isinstance(own, GuideTokenizer):
            core, pad = own.tokenizer.core, int(own.ids[PAD])
        else:
            return None
        core = tokenizers.Tokenizer.from_str(core.to_str())
        core.enable_truncation(self._length())
        core.enable_padding(pad_id=pad, pad_token=core.id_to_token(pad) or SPECIALS[PAD])
        return core

    def function(self) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """Return the prediction: arrays as `inputs` says -> probabilities, and stars if there are.

        The vectors of class names are computed once, not for each batch.
        """
        reader = self.reading.reader
        learner, encoder = self._learner(), self.encoder
        # A saved guide has arrays of NumPy, and outside of a jitted function they stay so.
        state, context = jax.tree.map(jnp.asarray, (self.adapted.state, self.adapted.context))

        def predict(given: Mapping[str, Any]) -> dict[str, Any]:
            batch = dict(given)
            if "mask" in batch:
                mask, tokens = batch.pop("mask") != 0, batch.pop("tokens")
                if encoder is not None:
                    params = {"params": encoder.params}
                    states = jnp.asarray(encoder.module.apply(params, tokens, mask))
                    # In half precision, as a guide reads vectors.
                    vector = pool(states, mask, encoder.pooling).astype(jnp.float16)
                    batch["vector"] = vector
                else:
                    assert isinstance(reader.tokenizer, GuideTokenizer)
                    numbers = jnp.asarray(reader.tokenizer.numbers)
                    batch["tokens"] = jnp.where(mask, numbers[tokens], PAD)
            found = learner.predict(state, batch, context)
            stars = {"stars": found["stars"]} if "stars" in found else {}
            return {"probabilities": jax.nn.softmax(found["logits"]), **stars}

        return predict

    def _learner(self) -> Learner:
        model, serving, problem = self.guide.guide.model, self.serving, self._problem
        settings = serving.learning_rate, serving.steps, serving.rule
        if self.adaptation.reads == "words":  # nothing of the guide
            return self.adaptation.tuned_to(problem, *settings)

        def encode(params: Params, batch: Batch, context: Any, key: Any) -> dict[str, Any]:
            del key
            with jax.ensure_compile_time_eval():
                fixed = self.fixed(params, context)
            found = encode_examples(model, params, batch, None)
            own = {"vector": found.vector, "lexical": found.lexical}
            return {**fixed, **{name: one for name, one in own.items() if name in fixed}}

        return self.adaptation.tuned_to(problem._replace(encode=encode), *settings)

    @cached_property
    def _problem(self) -> Problem:
        guide, labelling = self.guide.guide, LABELLINGS[self.task]
        return labelling.problem(guide.model, self.reading, len(self.adapted.classes))

    def fixed(self, params: Params, context: Any) -> dict[str, Any]:
        """Return what the problem encodes: of the context, and of an example without text."""
        guide = self.guide.guide
        blank = Server(guide.model, self.reading, self.serving, {}).blank
        rows = LABELLINGS[self.task].rows([TASKS[self.task].asks("0", "")], blank, "")
        # The key is None: no dropout, and no name is hidden.
        return jax.jit(self._problem.encode)(params, rows, context, None)

    @property
    def params(self) -> Params:
        """Return the parameters of the features, if a classifier on features adapted."""
        return self.adapted.state[0]["params"]


def prediction_of(guide: AdaptedGuide, task: str | None) -> Prediction:
    """Return the prediction of a task.

    Args:
        guide: the adapted guide.
        task: name of the task; None for the only one that can be exported.

    Raises:
        ExportError: the task cannot be exported, or it is not clear which one.
    """
    can = [name for name in guide.adapted if name in LABELLINGS]
    if task is None:
        if len(can) == 1:
            return prediction_of(guide, can[0])
        raise ExportError(
            f"the guide answers {' and '.join(can)}; give one of them as the task"
            if can
            else f"the guide answers none of {', '.join(LABELLINGS)}; adapt it to one of them"
        )
    if task in LABELLINGS and task not in guide.adapted:
        reason = "; ".join(guide.notes.get(task, ())) or "it was not adapted to it"
        raise ExportError(f"the guide does not answer {task}: {reason}")
    if task not in LABELLINGS:
        why = f": {REFUSED}" if task in TASKS else ""
        raise ExportError(f"{task} is not exported{why}; give {' or '.join(LABELLINGS)}")
    return Prediction(guide, task)
