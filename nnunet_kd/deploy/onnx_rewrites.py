"""ONNX graphs rewritten for speed, equal in exact arithmetic: slim stages leave most of a CPU's vector lanes idle.

Figures with and without: docs/light-students.md; scripts/bench_inference.py --quick [--plain] makes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx

_LANES = 16  # float32 numbers in a vector register of AVX-512
_MOST = 4  # rows folded at most
_NARROW_NORM = 8  # channels up to which instance norms are rewritten


def fold_rows(model: onnx.ModelProto, stride: int | None = None) -> int:
    """Let narrow 3x3 (3x3x3) convolutions compute several rows of y at once, as channels, and put these in their places.

    Convolutions of OpenVINO and ONNX Runtime compute 16 output channels at a time: with 4 channels, three quarters of the
    work are thrown away. Four rows of 4 channels are 16 channels of a convolution with a kernel of 6 rows (the 3 of each row,
    shifted, and zeros) and stride 4: 6/4 instead of 3 rows of kernel for every row of output. A transposition sorts the rows.

    Args:
        model: changed in place.
        stride: the network's total stride in y, of which sizes are multiples; None if the model's size is fixed.

    Returns:
        How many convolutions were rewritten.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    dims = len(graph.input[0].type.tensor_type.shape.dim) - 2
    if stride is None:
        stride = graph.input[0].type.tensor_type.shape.dim[dims].dim_value
    constants = {tensor.name: tensor for tensor in graph.initializer}
    levels = {graph.input[0].name: 1}  # by how much y is smaller than in the input, per tensor
    nodes, count = [], 0

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    for node in graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        level = next((levels[name] for name in node.input if name in levels), 1)
        step = attributes.get("strides", [1] * dims)[dims - 2] if node.op_type in (*_SHRINK, "ConvTranspose") else 1
        level = level // step if node.op_type == "ConvTranspose" else level * step
        levels |= dict.fromkeys(node.output, level)
        rows = _rows(node, attributes, constants, dims) if node.op_type == "Conv" else 1
        while rows > 1 and stride % (level * rows):
            rows //= 2
        if rows == 1:
            nodes.append(node)
            continue
        name, (x, weight, *bias) = f"rows_{count}_", node.input
        old = numpy_helper.to_array(constants[weight])
        out, kernel = old.shape[0], old.shape[2:]
        new = np.zeros((out, rows, *old.shape[1:-2], rows + 2, 3), old.dtype)
        for row in range(rows):
            new[:, row, ..., row : row + 3, :] = old
        new = new.reshape(out * rows, *new.shape[2:])
        inputs = [x, constant(name + "weight", new)]
        if bias:
            inputs.append(constant(name + "bias", np.repeat(numpy_helper.to_array(constants[bias[0]]), rows)))
        ends = constant(name + "one", np.array([0], np.int64)), constant(name + "rows", np.array([out, rows], np.int64))
        channels = constant(name + "channels", np.array([0, out], np.int64))
        steps = [*[1] * (dims - 2), rows, 1]
        last = [0, *range(2, dims + 2), 1]  # channels last, as the convolution leaves them: costs nothing
        sort = [
            0,
            dims + 1,
            *range(1, dims),
            dims + 2,
            dims,
        ]  # (B, [z], y / rows, x, C, rows) -> (B, C, [z], y / rows, rows, x)
        nodes += [
            helper.make_node(
                "Conv", inputs, [name + "c"], kernel_shape=[*kernel[:-2], rows + 2, 3], strides=steps, pads=attributes["pads"]
            ),
            helper.make_node("Transpose", [name + "c"], [name + "l"], perm=last),
            helper.make_node("Shape", [x], [name + "size"], start=2),
            helper.make_node("Shape", [name + "c"], [name + "folded"], start=2),
            helper.make_node("Concat", [ends[0], name + "folded", ends[1]], [name + "split"], axis=0),
            helper.make_node("Reshape", [name + "l", name + "split"], [name + "r"]),
            helper.make_node("Transpose", [name + "r"], [name + "t"], perm=sort),
            helper.make_node("Concat", [channels, name + "size"], [name + "joined"], axis=0),
            helper.make_node("Reshape", [name + "t", name + "joined"], list(node.output)),
        ]
        count += 1
    _replace(graph, nodes)
    return count


_SHRINK = ("Conv", "AveragePool", "MaxPool")


def _rows(node: onnx.NodeProto, attributes: dict, constants: dict, dims: int) -> int:
    """Rows that fill a vector, 1 if this convolution is not of the kind."""
    if any(name not in constants for name in node.input[1:]):
        return 1
    out, *_ = shape = constants[node.input[1]].dims
    pads = list(attributes.get("pads", [0] * 2 * dims))
    plain_3x3 = (
        list(shape[-2:]) == [3, 3]
        and set(attributes.get("strides", [1])) == set(attributes.get("dilations", [1])) == {1}
        and attributes.get("group", 1) == 1
        and pads[dims - 2 : dims] == pads[-2:] == [1, 1]
        and pads[: dims - 2] == [k // 2 for k in shape[2:-2]] == pads[dims : 2 * dims - 2]
    )
    rows = 1
    while plain_3x3 and rows < _MOST and 2 * rows * out <= _LANES:
        rows *= 2
    return rows


def split_narrow_norms(model: onnx.ModelProto, channels: int = _NARROW_NORM) -> int:
    """Write instance norms of few channels as a norm over flattened space, then scale and shift. Equal in exact arithmetic.

        y = IN(x) * g + b,  x: (B, C, *S)   ->   y = reshape(IN(reshape(x, (B, C, -1))), shape(x)) * g + b

    OpenVINO's CPU plugin keeps convolutions' outputs with the channels last and takes statistics with one vector lane per
    channel. With 4 channels 12 of 16 lanes idle: half of a slim student's time. Flat space makes it reorder to channels
    first, where all lanes work; its statistics are more exact there, too. From 16 channels on the reordering costs more
    than it saves.

    Args:
        model: changed in place.
        channels: rewrite norms of up to so many.

    Returns:
        How many were rewritten.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dims = len(graph.input[0].type.tensor_type.shape.dim)
    nodes, count = [], 0
    for node in graph.node:
        if node.op_type != "InstanceNormalization" or node.input[1] not in constants or node.input[2] not in constants:
            nodes.append(node)
            continue
        scale, shift = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        if len(scale) > channels:
            nodes.append(node)
            continue
        name = f"narrow_norm_{count}_"
        column = (-1, *[1] * (dims - 2))
        for part, value in (
            ("flat", np.array([0, 0, -1], np.int64)),
            ("one", np.ones_like(scale)),
            ("zero", np.zeros_like(shift)),
            ("scale", scale.reshape(column)),
            ("shift", shift.reshape(column)),
        ):
            graph.initializer.append(numpy_helper.from_array(value, name + part))
        x, y = node.input[0], node.output[0]
        eps = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        nodes += [
            helper.make_node("Shape", [x], [name + "shape"]),
            helper.make_node("Reshape", [x, name + "flat"], [name + "x"]),
            helper.make_node("InstanceNormalization", [name + "x", name + "one", name + "zero"], [name + "n"], epsilon=eps),
            helper.make_node("Reshape", [name + "n", name + "shape"], [name + "y"]),
            helper.make_node("Mul", [name + "y", name + "scale"], [name + "scaled"]),
            helper.make_node("Add", [name + "scaled", name + "shift"], [y]),
        ]
        count += 1
    _replace(graph, nodes)
    return count


def _replace(graph: onnx.GraphProto, nodes: list) -> None:
    """Set the nodes, and drop initializers that none of them reads."""
    used_names = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used_names]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
