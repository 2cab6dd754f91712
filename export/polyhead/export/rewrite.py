"""Finding linear layers in an exported graph and putting other nodes in their place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators."""


@dataclass(frozen=True)
class Linear:
    """A product with a matrix that the graph holds, and a bias perhaps."""

    node: ir.Node
    weight: ir.Value
    transposed: bool
    """Whether the graph holds the matrix as (outputs, inputs)."""
    bias: ir.Value | None

    @property
    def name(self) -> str:
        """Of the weight in the checkpoint."""
        return str(self.weight.name).removesuffix(".T")

    def matrix(self) -> Floats:
        """(inputs, outputs)."""
        stored = array(self.weight)
        return stored.T if self.transposed else stored


class Editor:
    """Adds nodes and constants to a graph. Nodes come before one that they will replace."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph

    def constant(self, name: str, value: NDArray[Any] | np.generic) -> ir.Value:
        """An initializer; the same one for the same name."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(np.asarray(value), name=name)
            shape = ir.Shape(np.shape(value))
            held = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=shape)
            self.graph.register_initializer(held)
        return self.graph.initializers[name]

    def add(
        self, before: ir.Node, operator: str, *inputs: ir.Value, domain: str = "", **attributes: int | float
    ) -> ir.Value:
        """A node with one output."""
        node = ir.node(operator, inputs, attributes, domain=domain)
        self.graph.insert_before(before, node)
        if domain:
            self.graph.opset_imports.setdefault(domain, 1)
        return node.outputs[0]

    def replace(self, node: ir.Node, value: ir.Value) -> None:
        """Let `value` take the place of the node's first output, and its name."""
        output = node.outputs[0]
        value.name, value.type, value.shape = output.name, output.type, output.shape
        output.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def drop_unused_weights(self) -> None:
        for weight in list(self.graph.initializers.values()):
            if not weight.uses():
                del self.graph.initializers[str(weight.name)]


def array(value: ir.Value) -> NDArray[Any]:
    """What an initializer holds."""
    assert value.const_value is not None
    return value.const_value.numpy()


def linear_layers(graph: ir.Graph) -> list[Linear]:
    """In the order in which the graph computes them."""
    return [found for node in graph if (found := _linear(node))]


def _linear(node: ir.Node) -> Linear | None:
    """A MatMul with a weight, or a Gemm, of which torch's exporter sets `transB` at most."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return Linear(node, weight, bool(node.attributes.get_int("transB", 0)), bias)


def token_table(graph: ir.Graph) -> ir.Node:
    """The Gather that looks tokens up in their embeddings."""
    ids = graph.inputs[0]
    shaped = {ids, *(node.outputs[0] for node in graph if node.op_type == "Reshape" and node.inputs[0] is ids)}
    return next(node for node in graph if node.op_type == "Gather" and node.inputs[1] in shaped)


def pack_projections(editor: Editor, keep: Callable[[str], bool]) -> None:
    """Query, key and value of a layer by one product: GroupQueryAttention takes them side by side as its first input.

    Not where something stands between the products and the node, such as a rotation, or where one of them is to `keep` its
    precision.
    """
    for node in list(editor.graph):
        if node.op_type != "GroupQueryAttention":
            continue
        parts = [_linear(producer) for value in node.inputs[:3] if value and (producer := value.producer())]
        layers = [part for part in parts if part is not None and part.bias is None and not keep(part.name)]
        if len(layers) != 3:
            continue
        names = [layer.name for layer in layers]
        packed = editor.constant("+".join(names), np.concatenate([layer.matrix() for layer in layers], axis=1))
        product = editor.add(layers[0].node, "MatMul", layers[0].node.inputs[0], packed)  # type: ignore[arg-type]
        for index, value in enumerate((product, None, None)):
            node.replace_input_with(index, value)
        editor.graph.remove([layer.node for layer in layers], safe=True)
