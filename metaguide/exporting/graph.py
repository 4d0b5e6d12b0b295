"""From a JAX function to an ONNX graph with dynamic axes.

The function is traced once with symbolic sizes, and each primitive of the trace becomes a few ONNX
operators. What depends on no input is computed while converting. Only the primitives that the
guide's models and learners need are known; any other is one error that names it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 8
"""Versions of the operators and of the file, which runtimes since 2023 read."""

KINDS: Mapping[str, int] = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    # Few runtimes multiply these: they are kept in 64 bits, and reduced after each operation.
    "uint32": TensorProto.INT64,
}
"""The ONNX type of each dtype."""

SAME: Mapping[str, str] = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "logistic": "Sigmoid",
    "sqrt": "Sqrt",
    "erf": "Erf",
    "abs": "Abs",
    "floor": "Floor",
    "and": "And",
    "or": "Or",
    "not": "Not",
    "eq": "Equal",
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
}
"""Primitives that are one ONNX operator, element by element."""

REDUCTIONS: Mapping[str, str] = {
    "reduce_sum": "ReduceSum",
    "reduce_max": "ReduceMax",
    "reduce_min": "ReduceMin",
    "reduce_and": "ReduceMin",
    "reduce_or": "ReduceMax",
}
"""Primitives that reduce axes; those of truth values reduce integers."""

INSIDE = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Parameters of primitives that stand for what is inside of them."""


class ExportError(ValueError):
    """A guide that cannot be exported as asked; the message says why."""


class Input(NamedTuple):
    """An input of a graph.

    Attributes:
        shape: its axes, fixed ones as numbers, dynamic ones by name; those of one name are equal.
        dtype: name of its dtype.
    """

    shape: tuple[int | str, ...]
    dtype: str


class Value(NamedTuple):
    """What a variable of the trace stands for.

    Attributes:
        name: the name of the tensor in the graph; "" for a constant.
        constant: the array that a constant is.
        is_broadcast: whether the tensor still has to be expanded to the variable's shape, which
            operators on elements do by themselves.
    """

    name: str = ""
    constant: Any = None
    is_broadcast: bool = False


def to_onnx(
    function: Callable[..., Mapping[str, Any]],
    inputs: Mapping[str, Input],
    limits: Mapping[str, int],
    name: str,
) -> onnx.ModelProto:
    """Convert a JAX function to an ONNX model.

    Args:
        function: arrays keyed as `inputs` -> arrays keyed by the names of the outputs. The arrays
            that it closes over become constants of the model.
        inputs: the inputs.
        limits: the largest size of some dynamic axes.
        name: name of the graph.

    Returns:
        The model, whose dynamic axes have their names.

    Raises:
        ExportError: the function uses a primitive, or a dtype, that is not known here.
    """
    axes = dict.fromkeys(a for one in inputs.values() for a in one.shape if isinstance(a, str))
    bounds = [f"{axis} >= 1" for axis in axes]
    bounds += [f"{axis} <= {most}" for axis, most in limits.items() if axis in axes]
    sizes = dict(zip(axes, export.symbolic_shape(",".join(axes), constraints=bounds), strict=True))
    known = {
        name: jax.ShapeDtypeStruct(
            [a if isinstance(a, int) else sizes[a] for a in one.shape], jnp.dtype(one.dtype)
        )
        for name, one in inputs.items()
    }
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(known)
    graph = _Graph()
    for axis, size in sizes.items():
        owner, place = next(
            (name, one.shape.index(axis)) for name, one in inputs.items() if axis in one.shape
        )
        whole = graph.add("Shape", [owner], start=place, end=place + 1)
        graph.sizes[size] = whole
    # A dict's leaves are in the order of its names, for inputs as for outputs.
    given = [Value(one) for one in sorted(inputs)]
    found = graph.run(traced.jaxpr, [Value(constant=c) for c in traced.consts], given)
    outputs = []
    for (label, shape), value in zip(sorted(shapes.items()), found, strict=True):
        graph.add("Identity", [graph.full(value, shape)], output=label)
        outputs.append(helper.make_tensor_value_info(label, *_typed(shape)))
    described = [helper.make_tensor_value_info(name, *_typed(one)) for name, one in known.items()]
    body = helper.make_graph(graph.nodes, name, described, outputs, graph.initializers)
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(
        body, producer_name="metaguide", opset_imports=[opset], ir_version=IR_VERSION
    )


def _typed(leaf: Any) -> tuple[int, list[int | str]]:
    """Return the ONNX type and axes of an abstract array."""
    return _kind(leaf.dtype), [one if isinstance(one, int) else str(one) for one in leaf.shape]


def _kind(dtype: Any) -> int:
    name = jnp.dtype(dtype).name
    if name not in KINDS:
        raise ExportError(f"the guide computes in {name}, which is not exported; use float32")
    return KINDS[name]


def _is_fixed(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, int) for size in shape)


@dataclass
class _Graph:
    """The nodes and constants of a graph that is being built."""

    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    sizes: dict[Any, str] = field(default_factory=dict)
    """The tensor, int64 [1], of each dynamic size."""
    _constants: dict[int, tuple[Any, str]] = field(default_factory=dict)

    def add(self, operator: str, inputs: Sequence[str], output: str = "", **fields: Any) -> str:
        """Add a node and return the name of its output."""
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **fields))
        return output

    def constant(self, array: Any) -> str:
        """Return the name of a constant; the same array is stored once."""
        if id(array) not in self._constants:
            host = np.asarray(array)
            host = host.astype(np.int64) if host.dtype == np.uint32 else host
            _kind(host.dtype)
            name = f"c{len(self.initializers)}"
            self.initializers.append(numpy_helper.from_array(np.asarray(host, order="C"), name))
            self._constants[id(array)] = array, name  # kept, so that no other gets its id
        return self._constants[id(array)][1]

    def whole(self, *numbers: int | np.integer) -> str:
        """Return the name of a list of whole numbers."""
        return self.constant(np.array(numbers, np.int64))

    def raw(self, value: Value) -> str:
        """Return the tensor of a value, which may still have to be expanded."""
        return value.name or self.constant(value.constant)

    def full(self, value: Value, like: Any) -> str:
        """Return the tensor of a value in the shape of its variable."""
        if not value.is_broadcast:
            return self.raw(value)
        return self.add("Expand", [self.raw(value), self.shape(like.shape)])

    def shape(self, sizes: Sequence[Any]) -> str:
        """Return a shape as a tensor."""
        if _is_fixed(sizes):
            return self.whole(*sizes)
        parts = [self.whole(one) if isinstance(one, int) else self.size(one) for one in sizes]
        return parts[0] if len(parts) == 1 else self.add("Concat", parts, axis=0)

    def size(self, size: Any) -> str:
        """Return a dynamic size as a tensor, int64 [1]."""
        if size not in self.sizes:
            raise ExportError(f"an axis has the size {size}, which is not one of the inputs'")
        return self.sizes[size]

    def reshaped(self, tensor: str, sizes: Sequence[Any]) -> str:
        """Return a tensor in another shape, of which one size may be any dynamic one."""
        unknown = [one for one in sizes if not isinstance(one, int) and one not in self.sizes]
        if len(unknown) == 1:
            sizes = [-1 if one is unknown[0] else one for one in sizes]
        return self.add("Reshape", [tensor, self.shape(sizes)])

    def run(self, jaxpr: Any, constants: Sequence[Value], given: Sequence[Value]) -> list[Value]:
        """Add the nodes of a trace and return its outputs."""
        values: dict[Any, Value] = dict(zip(jaxpr.constvars, constants, strict=True))
        values |= zip(jaxpr.invars, given, strict=True)

        def read(atom: Any) -> Value:
            # A literal has its value, which may be a plain number; a variable is looked up.
            is_literal = hasattr(atom, "val")
            return (
                Value(constant=np.asarray(atom.val, atom.aval.dtype))
                if is_literal
                else values[atom]
            )

        for equation in jaxpr.eqns:
            found = self._equation(equation, [read(atom) for atom in equation.invars])
            values |= zip(equation.outvars, found, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, inputs: list[Value]) -> list[Value]:
        name, fields = equation.primitive.name, equation.params
        inner = next((fields[one] for one in INSIDE if one in fields), None)
        if inner is not None:
            closed = getattr(inner, "jaxpr", inner)
            constants = [Value(constant=one) for one in getattr(inner, "consts", ())]
            return self.run(closed, constants, inputs)
        outputs = [variable.aval for variable in equation.outvars]
        if name == "dim_as_value":
            tensor = self.reshaped(self.size(fields["dim"]), ())
            return [Value(self.add("Cast", [tensor], to=_kind(outputs[0].dtype)))]
        if all(not one.name and not one.is_broadcast for one in inputs) and all(
            _is_fixed(one.shape) for one in outputs
        ):
            found = equation.primitive.bind(*(one.constant for one in inputs), **fields)
            found = found if equation.primitive.multiple_results else [found]
            return [Value(constant=one) for one in found]
        shapes = [atom.aval for atom in equation.invars]
        if name in SAME or name in ELEMENTWISE:
            lazy = all(
                one.is_broadcast or not shape.shape
                for one, shape in zip(inputs, shapes, strict=True)
            )
            tensors = [self.raw(one) for one in inputs]
            made = self._on_elements(name, tensors, shapes, outputs[0], fields)
            return [Value(made, is_broadcast=lazy and bool(outputs[0].shape))]
        if name == "broadcast_in_dim":
            return [self._broadcast(inputs[0], shapes[0], outputs[0], fields)]
        if name not in STRUCTURAL:
            raise ExportError(f"the guide uses {name}, which is not exported to ONNX")
        tensors = [self.full(one, shape) for one, shape in zip(inputs, shapes, strict=True)]
        made = STRUCTURAL[name](self, tensors, shapes, outputs, fields)
        return [Value(one) for one in ([made] if isinstance(made, str) else made)]

    def _on_elements(
        self, name: str, tensors: list[str], shapes: list[Any], output: Any, fields: Any
    ) -> str:
        if name in ELEMENTWISE:
            made = ELEMENTWISE[name](self, tensors, shapes, output, fields)
        elif name in ("max", "min") and shapes[0].dtype == jnp.bool_:
            made = self.add("Or" if name == "max" else "And", tensors)
        elif name in ("and", "or", "not") and shapes[0].dtype != jnp.bool_:
            raise ExportError(f"the guide uses {name} of numbers, which is not exported to ONNX")
        else:
            made = self.add(SAME[name], tensors)
        if output.dtype == jnp.uint32:
            made = self.add("Mod", [made, self.constant(np.array(2**32, np.int64))])
        return made

    def _broadcast(self, value: Value, shape: Any, output: Any, fields: Any) -> Value:
        """Give a value axes of size 1, which are expanded where that is needed."""
        places = fields["broadcast_dimensions"]
        sizes: list[Any] = [1] * len(output.shape)
        for axis, place in enumerate(places):
            sizes[place] = shape.shape[axis]
        if not value.name and not value.is_broadcast:
            return Value(constant=np.reshape(np.asarray(value.constant), sizes), is_broadcast=True)
        tensor = self.full(value, shape)
        # New axes alone need no shape, which would have to be read from the input.
        new = [axis for axis in range(len(sizes)) if axis not in places]
        made = self.add("Unsqueeze", [tensor, self.whole(*new)]) if new else tensor
        return Value(made, is_broadcast=tuple(sizes) != tuple(output.shape))


def _cast(graph: _Graph, tensors: list[str], shapes: Any, output: Any, fields: Any) -> str:
    return graph.add("Cast", tensors, to=_kind(output.dtype))


def _select(graph: _Graph, tensors: list[str], shapes: Any, output: Any, fields: Any) -> str:
    which, *cases = tensors
    if len(cases) != 2:
        raise ExportError(f"the guide selects among {len(cases)}, which is not exported to ONNX")
    if shapes[0].dtype != jnp.bool_:
        which = graph.add("Cast", [which], to=TensorProto.BOOL)
    return graph.add("Where", [which, cases[1], cases[0]])


def _power(graph: _Graph, tensors: list[str], shapes: Any, output: Any, fields: Any) -> str:
    exponent = np.asarray(fields["y"], output.dtype)
    return graph.add("Pow", [*tensors, graph.constant(exponent)])


def _clamp(graph: _Graph, tensors: list[str], shapes: Any, output: Any, fields: Any) -> str:
    least, value, most = tensors
    return graph.add("Min", [graph.add("Max", [value, least]), most])


def _chain(*operators: str) -> Callable[..., str]:
    def made(graph: _Graph, tensors: list[str], *_: Any) -> str:
        for operator in operators:
            tensors = [graph.add(operator, tensors)]
        return tensors[0]

    return made


def _log1p(graph: _Graph, tensors: list[str], shapes: Any, output: Any, fields: Any) -> str:
    return graph.add("Log", [graph.add("Add", [*tensors, graph.constant(_one(output.dtype))])])


def _shift_right(graph: _Graph, tensors: list[str], shapes: Any, output: Any, fields: Any) -> str:
    # Numbers without a sign are kept in 64 bits, where division is the shift.
    if output.dtype != jnp.uint32:
        raise ExportError(f"the guide shifts {output.dtype}, which is not exported to ONNX")
    power = graph.add("Pow", [graph.constant(np.array(2, np.int64)), tensors[1]])
    return graph.add("Div", [tensors[0], power])


def _rem(graph: _Graph, tensors: list[str], shapes: Any, output: Any, fields: Any) -> str:
    # JAX's remainder has the sign of the dividend, as that of fmod.
    return graph.add("Mod", tensors, fmod=1)


def _finite(graph: _Graph, tensors: list[str], *_: Any) -> str:
    bad = graph.add("Or", [graph.add("IsNaN", tensors), graph.add("IsInf", tensors)])
    return graph.add("Not", [bad])


def _first(graph: _Graph, tensors: list[str], *_: Any) -> str:
    return tensors[0]


def _one(dtype: Any) -> np.ndarray:
    return np.ones((), dtype)


ELEMENTWISE: Mapping[str, Callable[..., str]] = {
    "convert_element_type": _cast,
    "select_n": _select,
    "integer_pow": _power,
    "clamp": _clamp,
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "square": lambda graph, tensors, *_: graph.add("Mul", [tensors[0], tensors[0]]),
    "ne": _chain("Equal", "Not"),
    "log1p": _log1p,
    "rem": _rem,
    "shift_right_logical": _shift_right,
    "is_finite": _finite,
    "copy": _first,
    "stop_gradient": _first,
}
"""Primitives that are several ONNX operators, element by element."""


def _reshape(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    return graph.reshaped(tensors[0], outputs[0].shape)


def _squeeze(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    return graph.add("Squeeze", [tensors[0], graph.whole(*fields["dimensions"])])


def _transpose(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    return graph.add("Transpose", tensors, perm=fields["permutation"])


def _concatenate(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    return graph.add("Concat", tensors, axis=fields["dimension"])


def _stack(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    axis = graph.whole(fields["axis"])
    made = [graph.add("Unsqueeze", [tensor, axis]) for tensor in tensors]
    return graph.add("Concat", made, axis=fields["axis"])


def _slice(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    whole, starts, stops = shapes[0].shape, fields["start_indices"], fields["limit_indices"]
    strides = fields["strides"] or (1,) * len(whole)
    kept = [(0, size, 1) for size in whole]
    cut = [a for a, own in enumerate(zip(starts, stops, strides, strict=True)) if own != kept[a]]
    if not cut:
        return tensors[0]
    bounds = [graph.shape([of[axis] for axis in cut]) for of in (starts, stops)]
    steps = graph.whole(*(strides[axis] for axis in cut))
    return graph.add("Slice", [tensors[0], *bounds, graph.whole(*cut), steps])


def _split(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> list[str]:
    made, start = [], 0
    for size in fields["sizes"]:
        bounds = graph.whole(start), graph.whole(start + size), graph.whole(fields["axis"])
        made.append(graph.add("Slice", [tensors[0], *bounds]))
        start += size
    return made


def _pad(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    low, high, between = zip(*fields["padding_config"], strict=True)
    if any(between) or min(*low, *high) < 0:
        raise ExportError("the guide pads between entries or cuts, which is not exported to ONNX")
    return graph.add("Pad", [tensors[0], graph.whole(*low, *high), tensors[1]])


def _iota(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    of, axis = outputs[0], fields["dimension"]
    end = graph.reshaped(graph.shape([of.shape[axis]]), ())
    zero, one = (graph.constant(np.array(number, np.int64)) for number in (0, 1))
    line = graph.add("Range", [zero, end, one])
    line = graph.add("Cast", [line], to=_kind(of.dtype))
    others = [place for place in range(len(of.shape)) if place != axis]
    if not others:
        return line
    line = graph.add("Unsqueeze", [line, graph.whole(*others)])
    return graph.add("Expand", [line, graph.shape(of.shape)])


def _reduce(
    operator: str, graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any
) -> str:
    tensor, truth = tensors[0], shapes[0].dtype == jnp.bool_
    if truth:
        tensor = graph.add("Cast", [tensor], to=TensorProto.INT32)
    made = graph.add(operator, [tensor, graph.whole(*fields["axes"])], keepdims=0)
    return graph.add("Cast", [made], to=TensorProto.BOOL) if truth else made


def _cumsum(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    axis = graph.constant(np.array(fields["axis"], np.int64))
    return graph.add("CumSum", [tensors[0], axis], reverse=int(fields["reverse"]))


def _dot(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    (of_left, of_right), (batch_left, batch_right) = fields["dimension_numbers"]
    left, right = (len(one.shape) for one in shapes)
    free_left = [a for a in range(left) if a not in (*of_left, *batch_left)]
    free_right = [a for a in range(right) if a not in (*of_right, *batch_right)]
    one_each = len(of_left) == 1 and len(free_left) == 1 == len(free_right)
    if one_each or (len(of_left) == 1 and not batch_left and len(free_right) == 1 and free_left):
        made = [
            _permuted(graph, tensors[0], [*batch_left, *free_left, *of_left]),
            _permuted(graph, tensors[1], [*batch_right, *of_right, *free_right]),
        ]
        return graph.add("MatMul", made)
    # A letter for each axis; those that are contracted or of the batch share theirs.
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    names = [next(letters) for _ in range(left)]
    others = [""] * right
    for axis, other in zip((*of_left, *batch_left), (*of_right, *batch_right), strict=True):
        others[other] = names[axis]
    others = [name or next(letters) for name in others]
    result = [names[axis] for axis in (*batch_left, *free_left)]
    result += [others[axis] for axis in free_right]
    equation = f"{''.join(names)},{''.join(others)}->{''.join(result)}"
    return graph.add("Einsum", tensors, equation=equation)


def _permuted(graph: _Graph, tensor: str, axes: list[int]) -> str:
    return tensor if axes == sorted(axes) else graph.add("Transpose", [tensor], perm=axes)


def _gather(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    numbers, (table, places) = fields["dimension_numbers"], shapes
    sizes, axes = tuple(fields["slice_sizes"]), numbers.start_index_map
    outer, rank = len(places.shape) - 1, len(table.shape)
    index = graph.add("Cast", [tensors[1]], to=TensorProto.INT64)
    if not outer:  # a window, whose size may be dynamic
        ends = graph.add("Add", [index, graph.shape([sizes[axis] for axis in axes])])
        made = graph.add("Slice", [tensors[0], index, ends, graph.whole(*axes)])
        gone = numbers.collapsed_slice_dims
        return graph.add("Squeeze", [made, graph.whole(*gone)]) if gone else made
    rows = numbers.collapsed_slice_dims == axes == (0,) and sizes == (1, *table.shape[1:])
    if not rows or numbers.offset_dims != tuple(range(outer, outer + rank - 1)):
        raise ExportError("the guide gathers parts other than rows, which is not exported to ONNX")
    index = graph.add("Squeeze", [index, graph.whole(outer)])
    return graph.add("Gather", [tensors[0], index], axis=0)


def _scatter_add(graph: _Graph, tensors: list[str], shapes: Any, outputs: Any, fields: Any) -> str:
    numbers, axes = fields["dimension_numbers"], tuple(range(len(shapes[0].shape)))
    if (numbers.update_window_dims, numbers.scatter_dims_to_operand_dims) != ((), axes):
        raise ExportError("the guide adds to other parts than entries, which is not exported")
    places = graph.add("Cast", [tensors[1]], to=TensorProto.INT64)
    return graph.add("ScatterND", [tensors[0], places, tensors[2]], reduction="add")


STRUCTURAL: Mapping[str, Callable[..., Any]] = {
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "stack": _stack,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "iota": _iota,
    "cumsum": _cumsum,
    "dot_general": _dot,
    "gather": _gather,
    "scatter-add": _scatter_add,
    "optimization_barrier": lambda graph, tensors, *_: tensors,
    **{name: partial(_reduce, operator) for name, operator in REDUCTIONS.items()},
}
"""Primitives that need their inputs in full shape."""
