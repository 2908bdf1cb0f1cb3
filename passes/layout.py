"""Moves images from channels first (NCHW) to channels last (NHWC), the layout that kernels compute in.

    x: float32[1, 3, 224, 224]
    c: conv2d(x, w) -> c: [1, 8, 112, 112]         c: conv2d(x, w) {layout="NCHW:NHWC"} -> c: [1, 112, 112, 8]
    m: mul(c, s: [8, 1, 1]) -> m                   m: mul(c, s.nhwc: [1, 1, 1, 8]) -> m
    p: max_pool2d(m) -> p                     =>   p: max_pool2d(m) {layout="NHWC"} -> p
    r: reduce_mean(p) {axes=(2, 3)} -> r           r: reduce_mean(p) {axes=(1, 2)} -> r
    f: reshape(r) {shape=(1, 8)} -> y              r.nchw: reshape(r) -> r.nchw; f: reshape(r.nchw) -> y

Convolutions and pools ask for channels last; what may work in either layout follows its operands;
everything else (and the graph's outputs) asks for the model's own layout. A value is kept in the form it
was made in, and changed at most once, where the other form is first asked for. So transposes of the model
meet those of this pass and vanish. Where moving the axes moves no data, the change is a reshape. A first
convolution of few channels reads its graph input as it lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..compiler.ir import AttrValue, Graph, Node
from ..compiler.ops import ACTIVATIONS
from ..compiler.ops.compare import COMPARISONS
from ..compiler.ops.elementwise import BINARIES, FUNCTIONS, QUOTIENTS
from .scan import Scan, attr

TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
MOVED_AXIS = (0, 3, 1, 2)  # axis of NCHW -> its place in NHWC
STEM_CHANNELS = 4  # up to here a convolution gathers from NCHW as cheaply as a transpose would

ANCHORS = ("conv2d", "max_pool2d", "avg_pool2d")
CODES = ("quantize", "dequantize")
POINTWISE = (
    *(name for name in ACTIVATIONS if name != "none"),
    *(row[0] for row in FUNCTIONS),
    "cast",
    *CODES,
)
BINARY = (*(row[0] for row in (*BINARIES, *QUOTIENTS, *COMPARISONS)), "add", "where")  # they broadcast
PER_AXIS = ("pad", "slice")  # attributes are tuples with one entry per axis
ONE_AXIS = ("concat", "softmax")  # attribute `axis`
WITH_LAYOUT = ("resize", "depth_to_space")  # attribute `layout`
REDUCTIONS = ("reduce_mean", "reduce_sum", "reduce_max")


def move_channels_last(graph: Graph) -> Graph:
    mover = _Mover(graph)
    for node in graph.nodes:
        mover.visit(node)
    return mover.scan.finish()


class _Mover:
    """Walks the graph once. `nchw` and `nhwc` say under which name a value of the model exists in that form.

    A value of four axes has one form or both; every other value is in `nchw` only, which then just means
    "as the model has it".
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.scan = Scan(graph)
        self.shapes = {value: kind.shape for value, kind in graph.types.items()}
        self.nchw = {value: value for value in (*dict(graph.inputs), *graph.params)}
        self.nhwc: dict[str, str] = {}

    def visit(self, node: Node) -> None:
        if node.op in ANCHORS and attr(node, "layout") == "NCHW":
            self._anchor(node)
        elif node.op == "transpose" and node.attrs["perm"] in (TO_NHWC, TO_NCHW):
            self._transpose(node)
        elif self._follows(node):
            self._follower(node)
        else:
            self._keep(node)

    # The kinds of nodes

    def _keep(self, node: Node) -> None:
        inputs = [self._as_nchw(v) if v else "" for v in node.inputs]
        self.scan.emit(Node(node.name, node.op, tuple(inputs), node.outputs, node.types, node.attrs))
        self.nchw.update((v, v) for v in node.outputs)

    def _anchor(self, node: Node) -> None:
        x = node.inputs[0]
        layout, source = "NHWC", ""
        if self._is_stem(node):
            layout, source = "NCHW:NHWC", self.nchw[x]
        # Weights keep their own axis order, computed ones too; the residual lies as the output does.
        rest = [
            v and (self._as_nhwc(v) if i == 3 else self._as_nchw(v)) for i, v in enumerate(node.inputs) if i
        ]
        inputs = [source or self._as_nhwc(x), *rest]
        self._emit_nhwc(node, inputs, {**node.attrs, "layout": layout})

    def _is_stem(self, node: Node) -> bool:
        """A convolution on few channels that exist channels first only."""
        x = node.inputs[0]
        if node.op != "conv2d" or x in self.nhwc or x not in dict(self.graph.inputs):
            return False
        return attr(node, "groups") == 1 and self.shapes[x][1] <= STEM_CHANNELS

    def _transpose(self, node: Node) -> None:
        """A transpose between the two layouts only says which form is meant, when that form exists."""
        x, y = node.inputs[0], node.output
        if y in self.graph.outputs or len(self.shapes[x]) != 4:
            self._keep(node)
        elif node.attrs["perm"] == TO_NHWC and x in self.nhwc:
            self.nchw[y] = self.nhwc[x]  # y as the model has it is x channels last
        elif node.attrs["perm"] == TO_NCHW and x in self.nchw:
            self.nhwc[y] = self.nchw[x]  # y channels last is x as the model has it
        else:
            self._keep(node)

    def _follows(self, node: Node) -> bool:
        """Whether a node may work channels last, and an operand lies that way already."""
        if not any(v in self.nhwc and v not in self.nchw for v in node.inputs):
            return False
        if node.op in BINARY:
            ranks = [(v, len(self.shapes[v])) for v in node.inputs]
            return all(rank == 4 or (rank < 4 and v in self.graph.params) for v, rank in ranks)
        if node.op in REDUCTIONS:
            return bool(attr(node, "keepdims")) or _same_order(attr(node, "axes"))
        if node.op in WITH_LAYOUT:
            return bool(attr(node, "layout") == "NCHW")
        return node.op in (*POINTWISE, *PER_AXIS, *ONE_AXIS)

    def _follower(self, node: Node) -> None:
        inputs = [self._as_nhwc(v) for v in node.inputs]
        attrs: dict[str, Any] = dict(node.attrs)
        if node.op in PER_AXIS:
            attrs = {k: _permuted(v) if isinstance(v, tuple) else v for k, v in attrs.items()}
        elif node.op in ONE_AXIS:
            attrs["axis"] = MOVED_AXIS[attrs["axis"]]
        elif node.op in WITH_LAYOUT:
            attrs["layout"] = "NHWC"
        elif node.op in REDUCTIONS:
            attrs["axes"] = tuple(sorted(MOVED_AXIS[a] for a in attrs["axes"]))
        if len(node.type.shape) == 4:
            self._emit_nhwc(node, inputs, attrs)
        else:
            self.scan.emit(self.scan.make(node.name, node.op, inputs, node.output, attrs))
            self.nchw[node.output] = node.output

    # The forms of values

    def _emit_nhwc(self, node: Node, inputs: list[str], attrs: Mapping[str, AttrValue]) -> None:
        """Emit a node whose result lies channels last. A graph output's own name is left for the other
        form.
        """
        y = node.output
        if y not in self.graph.outputs:
            self.nhwc[y] = self.scan.emit(self.scan.make(node.name, node.op, inputs, y, attrs))
            return
        moved = self.scan.new_value(f"{y}.nhwc")
        self.nhwc[y] = self.scan.emit(self.scan.make(node.name, node.op, inputs, moved, attrs))
        self.nchw[y] = self.scan.emit(self._move(self.nhwc[y], self.scan.new_node(f"{y}.nchw"), y, TO_NCHW))

    def _as_nchw(self, value: str) -> str:
        if value not in self.nchw:
            name = self.scan.new_value(f"{value}.nchw")
            self.nchw[value] = self.scan.emit(self._move(self.nhwc[value], name, name, TO_NCHW))
        return self.nchw[value]

    def _as_nhwc(self, value: str) -> str:
        if value not in self.nhwc:
            if value in self.graph.params:
                self.nhwc[value] = self._moved_param(value)
            else:
                name = self.scan.new_value(f"{value}.nhwc")
                self.nhwc[value] = self.scan.emit(self._move(self.nchw[value], name, name, TO_NHWC))
        return self.nhwc[value]

    def _moved_param(self, value: str) -> str:
        array = self.graph.params[value]
        if array.size == 1:
            return value
        full = array.reshape((1,) * (4 - array.ndim) + array.shape)
        return self.scan.add_param(f"{value}.nhwc", full.transpose(TO_NHWC))

    def _move(self, source: str, name: str, output: str, perm: tuple[int, ...]) -> Node:
        shape = self.scan.types[source].shape
        if [p for p in perm if shape[p] != 1] == [i for i in range(4) if shape[i] != 1]:
            return self.scan.make(
                name, "reshape", (source,), output, {"shape": tuple(shape[p] for p in perm)}
            )
        return self.scan.make(name, "transpose", (source,), output, {"perm": perm})


def _permuted(values: Any) -> Any:
    return tuple(values[p] for p in TO_NHWC)


def _same_order(axes: Any) -> bool:
    """Whether the axes that a reduction leaves stand in the same order in both layouts."""
    left = [a for a in range(4) if a not in axes]
    return left == [a for a in TO_NHWC if a not in axes]
