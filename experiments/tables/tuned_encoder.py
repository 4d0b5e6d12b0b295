"""A guide of one task on a pretrained encoder, whose last layers train together with the head."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from ml_collections.config_dict import FrozenConfigDict

from experiments.config_files import ConfigError
from experiments.outcomes import digest
from experiments.run_folder import HARMLESS, identity
from experiments.stages import beside_frozen, warmed, with_frozen, without_frozen
from experiments.training import Training, schedule_of, train_alone
from metaguide import run_config
from metaguide.guide import description_of, model_of
from metaguide.models.encoder import FROZEN
from metaguide.models.guide import GuideModel, init_params
from metaguide.models.tuned import Tuning
from metaguide.parallel import local_mesh
from metaguide.pretrained import PretrainedEncoder, tuned_params
from metaguide.run_config import RunConfig, Served
from metaguide.training.step import Gradient
from metaguide.types import Params, Problem


class TunedGuide(NamedTuple):
    """A guide of one task, before or after its training.

    Attributes:
        guide: the description of the guide.
        encoder: the pretrained encoder.
        model: the guide's model.
        task: name of the task.
        problem: the task by that model.
        known: the parameters that start as the encoder's, keyed by group.
    """

    guide: RunConfig
    encoder: PretrainedEncoder
    model: GuideModel
    task: str
    problem: Problem
    known: Mapping[str, Params]

    @property
    def frozen(self) -> Params:
        """The parameters of the encoder that do not train."""
        return self.known[FROZEN]

    def encoder_of(self, params: Params) -> PretrainedEncoder:
        """Return the encoder with trained layers, whose vectors are other ones.

        Args:
            params: what `train_tuned` returned.
        """
        layers = params.get("text", {})
        return replace(
            self.encoder,
            params={**self.encoder.params, **layers},
            fingerprint=digest(self.encoder.fingerprint, layers),
        )


def tuned_guide(
    config: FrozenConfigDict,
    where: str,
    encoder: PretrainedEncoder,
    task: str,
    problem_of: Callable[[GuideModel], Problem],
    max_answer_tokens: int = 1,
) -> TunedGuide:
    """Return the guide that a section of a config describes.

    Args:
        config: its `encoder` is read, and the section's `layers` and `dropout`.
        where: name of the section.
        encoder: the pretrained encoder.
        task: name of the task.
        problem_of: a guide's model -> the task by it.
        max_answer_tokens: the longest answer, of questions.

    Raises:
        ConfigError: the encoder has fewer layers than are to train, or fewer positions.
    """
    section = config[where]
    tuning = Tuning("last", layers=section.layers)
    guide = RunConfig(
        width=encoder.config.width,
        layers=0,
        heads=encoder.config.heads,
        dropout=section.dropout,
        channels=(1,),
        image=False,
        way=2,
        **dict.fromkeys(("text_tokens", "pair_tokens", "name_tokens"), config.encoder.length),
        max_answer_tokens=max_answer_tokens,
        vocabulary=encoder.guide_tokenizer.size,
        encoder_train=tuning.trains,
        encoder_layers=tuning.layers,
        serving={task: Served(".", "zero-shot", 0.0, 0)},
        stage="multitask",
        **description_of(encoder, config.encoder.weights),
    )
    try:
        model = model_of(guide, encoder.guide_tokenizer, encoder)
    except ValueError as error:
        raise ConfigError(f"config.{where}, config.encoder: {error}") from error
    return TunedGuide(guide, encoder, model, task, problem_of(model), tuned_params(encoder, tuning))


def train_tuned(
    config: FrozenConfigDict,
    where: str,
    tuned: TunedGuide,
    gradient: Gradient,
    data: Any,
    steps: int,
    seed: int,
    folder: Path,
) -> Params:
    """Return the parameters of a trained guide; training goes on where it stopped in `folder`.

    The folder is that of a guide, which `metaguide.load` reads.

    Args:
        config: the resolved config, whose section has the fields of `TUNED`.
        where: name of the section.
        tuned: the guide.
        gradient: of the loss of all parameters, on a batch that is drawn from the data.
        data: what it draws from.
        steps: number of steps.
        seed: seed of the training.
        folder: work folder of this training.
    """
    section, guide = config[where], replace(tuned.guide, seed=seed)
    of_section = identity(section, harmless=(*HARMLESS, "seeds"))
    run_config.write(guide, folder)
    params = init_params(tuned.model, jax.random.key(1000 + seed), tuned.known)
    trained = train_alone(
        Training(
            tuned.task,
            beside_frozen(gradient),
            without_frozen({"params": params}),
            {"data": data, FROZEN: tuned.frozen},
            optimizer_of(section, steps, tuned.task),
            jax.random.key(seed),
        ),
        schedule_of(section, f"config.{where}", steps, 1),
        folder,
        mesh=local_mesh(),
        parallel="jit",
        where=f"config.{where}",
        name=f"{where}, seed {seed}",
        hint=f"lower config.{where}.learning_rate",
        about={
            **guide.about,
            "training": digest(of_section, steps, data),
            "encoder": guide.encoder_fingerprint,
        },
    )
    return with_frozen(trained, tuned.frozen)["params"]


def optimizer_of(section: FrozenConfigDict, steps: int, task: str) -> optax.GradientTransformation:
    """Return AdamW with rates of their own for the encoder and the head, which decay to 0."""

    def adamw(rate: float) -> optax.GradientTransformation:
        return optax.adamw(warmed(rate, steps), weight_decay=section.weight_decay)

    def labels(params: Params) -> Params:
        groups = {"text": "encoder", task: "head"}
        meta = {name: groups.get(name, "rest") for name in params["meta"]["params"]}
        return {"meta": {"params": meta}, "weighting": "rest"}

    rates = {"encoder": section.learning_rate, "head": section.head_learning_rate}
    by_group = {name: adamw(rate) for name, rate in rates.items()}
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition({**by_group, "rest": optax.set_to_zero()}, labels),
    )
