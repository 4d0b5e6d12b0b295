"""Self-supervised pre-training of the guide's encoder on unlabelled data of the source domains.

python -m experiments.pretrain --workdir=runs/pretrain
"""

from pathlib import Path

import jax
from ml_collections.config_dict import FrozenConfigDict

from experiments import runner
from experiments.config_files import ConfigError
from experiments.domain_split import DomainSplit
from experiments.modules import COMMANDS
from experiments.stages import Stage, build_stage, run_stage, stage_before, weighting_of
from metaguide.data.encoding import unlabelled
from metaguide.data.tokenizer import MASK
from metaguide.objectives import pretraining
from metaguide.training.progress import say


def pretraining_stage(config: FrozenConfigDict, split: DomainSplit) -> Stage:
    """Build the minimisation of J(θ) = Σ λₜ Jₜ(θ) over the objectives with non-zero weight.

    Objectives that need pictures are left out with a message if there are none.

    Args:
        config: its `pretrain` is read.
        split: the split whose sources are read.

    Returns:
        The stage.

    Raises:
        ConfigError: no objective is left.
    """
    section, model = config.pretrain, split.model
    table = unlabelled(split.sources, split.reading.reader.tokenizer, split.reading.lengths.text)
    objectives = {
        "masked_language": (
            "text",
            lambda: pretraining.masked_language(
                model,
                section.batch,
                mask_id=MASK,
                mask_rate=section.mask_rate,
                variant=section.mask_variant,
            ),
        ),
        "denoising": (
            "image",
            lambda: pretraining.denoising(
                model, section.batch, sigma=section.noise, occlusion=section.occlusion
            ),
        ),
        "image_text": ("pair", lambda: pretraining.image_text(model, section.batch)),
        "text_text": ("text", lambda: pretraining.text_text(model, section.batch)),
    }
    wanted = {name: section.weights[name] for name in objectives if section.weights[name] > 0}
    parts = table.keys() if model.image else table.keys() & {"text"}
    used = {name: λ for name, λ in wanted.items() if objectives[name][0] in parts}
    why = "the sources have no pictures" if model.image else "config.model.image is off"
    if "text" not in parts:
        why = "config.model.layers is 0, and pre-training on texts needs a Transformer"
    if not used:
        why = f"{why}, and " if wanted else ""
        raise ConfigError(
            f"config.pretrain.weights: {why}no objective is left; give one for texts a weight, "
            "such as --config.pretrain.weights.masked_language=1.0"
        )
    if len(used) < len(wanted):
        say(f"pretrain: {', '.join(sorted(wanted.keys() - used.keys()))} left out: {why}")
    return build_stage(
        config,
        "pretrain",
        {name: jax.value_and_grad(objectives[name][1](), has_aux=True) for name in used},
        {name: table[objectives[name][0]] for name in used},
        weighting_of("fixed", used, list(used)),
        frozen=split.frozen,
    )


def main(config: FrozenConfigDict, workdir: Path) -> None:
    """Run this stage alone."""
    run_stage(pretraining_stage, config, workdir, stage_before(config))


if __name__ == "__main__":
    runner.run(main, **COMMANDS["experiments.pretrain"]._asdict())
