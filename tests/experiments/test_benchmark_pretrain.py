import functools
import math

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks.measure import PRODUCTS, SIDE, System, Timing, Workload, rows
from experiments.benchmarks.pretrain import Shape, build_metaguide, build_torch, matrix_flops
from metaguide.models.encoder import transformer
from metaguide.models.guide import GuideModel


def products(jaxpr) -> int:
    """Operations of all matrix products in a jaxpr, those of inner functions too."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            left, right = (operand.aval.shape for operand in equation.invars)
            (contracted, _), (batch, _) = equation.params["dimension_numbers"]
            shared = math.prod(left[i] for i in (*contracted, *batch))
            total += 2 * math.prod(left) * math.prod(right) // shared
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            total += products(inner)
    return total


def test_operations_are_those_of_the_traced_model():
    """Catches a formula that counts products which the model does not make, or misses some."""
    shape = Shape(width=32, layers=3, heads=4, vocabulary=100, texts=4, length=10)
    model = GuideModel(transformer(100, 32, 3, 4, 10, channels=()), heads={})
    tokens = jnp.zeros((4, 10), jnp.int32)

    def forward(guide):
        states = guide.text_states(tokens)
        return guide.language_logits(states.reshape(-1, 32)[: shape.hidden])

    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    traced = jax.make_jaxpr(lambda p: model.apply(p, method=forward))(params)
    roles = 2 * tokens.size * 3 * 32  # a gather, written as a product because that is faster
    assert products(traced.jaxpr) - roles == matrix_flops(shape) // 3


def test_rows_relate_to_the_limit_and_to_each_other():
    """Catches a ratio upside down, a burst counted as one product, and compile time with a step."""
    shape = Shape()
    found = {
        "product": Timing(best=PRODUCTS * 0.01, first=1.0, peak=100.0),
        "metaguide": Timing(best=0.25, first=5.25, peak=900.0),
        "torch": Timing(best=0.5, first=1.0, peak=800.0),
    }
    systems = [
        System("metaguide", functools.partial(build_metaguide, shape)),
        System("torch", functools.partial(build_torch, shape)),
    ]
    ours, theirs = rows(Workload("masked_language", systems, matrix_flops(shape)), found)
    assert (ours["system"], theirs["system"]) == ("metaguide", "torch")
    assert ours["steps_per_s"] == 4 and ours["compile_s"] == 5 and ours["peak_mib"] == 900
    assert ours["ratio"] == 1 and theirs["ratio"] == 2
    expected = matrix_flops(shape) / 0.25 / (2 * SIDE**3 / 0.01)
    np.testing.assert_allclose(ours["limit_share"], expected)
    assert theirs["limit_share"] == pytest.approx(expected / 2)
