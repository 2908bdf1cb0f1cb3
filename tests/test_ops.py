"""The contract that every operator keeps, checked for each of its samples.

A new operator gets all of this for free: it needs samples, nothing else.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import BitsmithError
from bitsmith.compiler.ir import Graph, TensorType, element_type
from bitsmith.compiler.ops import ACTIVATIONS, OPS, OpDef, TypeRuleError
from bitsmith.compiler.reference import run_reference, tensor_of
from bitsmith.compiler.text import parse_graph, print_graph
from bitsmith.compiler.verify import verify
from bitsmith.targets.selection import RULES


@dataclass(frozen=True)
class Case:
    """One sample of one operator, with its random inputs made."""

    op: OpDef
    arrays: tuple[np.ndarray | None, ...]
    attrs: dict[str, Any]

    @property
    def types(self) -> list[TensorType | None]:
        return [None if a is None else TensorType(a.shape, a.dtype.name) for a in self.arrays]

    @property
    def names(self) -> list[str]:
        """What couplings call the inputs: those of a variadic operator are numbered."""
        if self.op.inputs == ("*",):
            return [f"*{i}" for i in range(len(self.arrays))]
        return list(self.op.inputs)

    @property
    def quantised(self) -> bool:
        """Whether uint8 and int8 stand for real numbers."""
        kinds = {str(a.dtype) for a in self.arrays if a is not None} | {self.attrs.get("out_dtype")}
        return bool(kinds & {"uint8", "int8"}) and "uint8" not in self.op.plain and bool(self.op.plain)

    @property
    def narrow(self) -> bool:
        """Whether weights are bfloat16: relax_quantised.py widens them before an OpDef's `relax`."""
        return any(a is not None and a.dtype.name == "bfloat16" for a in self.arrays)

    def run_all(self, arrays: "tuple[np.ndarray | None, ...] | None" = None) -> list[np.ndarray]:
        tensors = [None if a is None else tensor_of(a) for a in arrays or self.arrays]
        result = self.op.reference(tensors, self.op.complete(self.attrs))
        return [t.numpy() for t in (result if isinstance(result, tuple) else (result,))]

    def run(self, arrays: "tuple[np.ndarray | None, ...] | None" = None) -> np.ndarray:
        return self.run_all(arrays)[0]

    def graph(self) -> Graph:
        """The sample as a graph of one node: the first input is fed, the others are parameters."""
        builder = GraphBuilder(self.op.name)
        values = []
        for i, array in enumerate(self.arrays):
            if array is None:
                values.append("")
            elif i == 0:
                values.append(builder.input("in0", array.shape, array.dtype.name))
            else:
                values.append(builder.param(f"in{i}", array.copy()))
        return builder.finish(
            builder.add_all(self.op.name, values, name="node", outputs=("out",), **self.attrs)
        )


def make(op: OpDef, index: int) -> Case:
    sample, rng = op.samples[index], np.random.default_rng(index)

    def fill(kind: Any) -> np.ndarray | None:
        if not isinstance(kind, TensorType):
            return kind
        if "float" in kind.dtype:
            return rng.uniform(sample.low, sample.high, kind.shape).astype(element_type(kind.dtype))
        bounds = np.iinfo(kind.dtype) if kind.dtype in ("uint8", "int8") else np.iinfo(np.int16)
        return rng.integers(bounds.min, bounds.max, kind.shape, endpoint=True).astype(kind.dtype)

    return Case(op, tuple(fill(kind) for kind in sample.inputs), dict(sample.attrs))


CASES = [
    pytest.param(make(op, i), id=f"{name}-{i}") for name, op in OPS.items() for i in range(len(op.samples))
]
every_case = pytest.mark.parametrize("case", CASES)
every_op = pytest.mark.parametrize("op", OPS.values(), ids=list(OPS))


@every_op
def test_an_operator_has_samples_and_its_own_name(op):
    assert op.samples and OPS[op.name] is op
    assert 1 <= op.required <= len(op.inputs)


@every_case
def test_inference_is_what_the_reference_makes(case):
    kinds = case.op.infer_types(case.types, case.op.complete(case.attrs))
    made = case.run_all()
    assert [TensorType(out.shape, out.dtype.name) for out in made] == list(kinds)
    assert not any(np.isnan(out).any() for out in made)


@every_case
def test_the_sample_graph_runs_and_prints_and_parses(case):
    graph = case.graph()
    again = parse_graph(print_graph(graph), graph.params)
    assert print_graph(again) == print_graph(graph)
    assert (again.nodes, again.inputs, again.outputs) == (graph.nodes, graph.inputs, graph.outputs)
    verify(again)
    assert again.content_hash == graph.content_hash
    made = run_reference(again, {"in0": case.arrays[0]})
    for value, wanted in zip(graph.outputs, case.run_all(), strict=True):
        np.testing.assert_array_equal(made[value], wanted)


@every_case
def test_the_hash_sees_attributes_and_weights(case):
    graph = case.graph()
    (node,) = graph.nodes
    for key, value in node.attrs.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert graph.with_nodes((node.with_attrs(**{key: value + 1}),)).content_hash != graph.content_hash
    for name, array in graph.params.items():
        changed = array.copy()
        changed.reshape(-1)[-1:] = (
            ~changed.reshape(-1)[-1:] if changed.dtype == bool else changed.reshape(-1)[-1:] + 1
        )
        assert (
            graph.with_nodes(graph.nodes, params={**graph.params, name: changed}).content_hash
            != graph.content_hash
        )


@every_case
def test_unknown_attributes_and_missing_ones_are_refused(case):
    with pytest.raises(TypeRuleError, match="no attribute bogus"):
        case.op.complete({**case.attrs, "bogus": 1})
    for key, default in case.op.attrs.items():
        if default is None:
            with pytest.raises(TypeRuleError, match=f"needs attribute .*{key}"):
                case.op.complete({k: v for k, v in case.attrs.items() if k != key})


@every_case
def test_a_wrong_number_of_inputs_is_refused(case):
    attrs = case.op.complete(case.attrs)
    with pytest.raises(TypeRuleError, match="needs its input|takes"):
        case.op.infer_types([None] * len(case.types), attrs)
    with pytest.raises(TypeRuleError, match="takes"):
        case.op.infer_types([], attrs)
    if case.op.inputs != ("*",):
        with pytest.raises(TypeRuleError, match="takes"):
            case.op.infer_types([case.types[0]] * (len(case.op.inputs) + 1), attrs)


@every_case
def test_wrong_types_are_refused(case):
    """Operators that take any type refuse by shapes and attributes."""
    attrs, types = case.op.complete(case.attrs), case.types
    first = types[0]
    bad = [TensorType(first.shape, "float16")] if case.op.plain and "pool2d" not in case.op.name else []
    if bad and len(types) > 1:
        other = "bool" if first.dtype != "bool" else "uint8"
        with pytest.raises(TypeRuleError):
            case.op.infer_types([first, TensorType(types[1].shape, other), *types[2:]], attrs)
    if case.op.name in ("conv2d", "max_pool2d", "avg_pool2d"):
        bad.append(TensorType((*first.shape, 1), first.dtype))
    if case.op.name in ("transpose", "pad", "slice"):
        bad.append(TensorType((*first.shape, 1), first.dtype))
    for kind in bad:
        with pytest.raises(TypeRuleError):
            case.op.infer_types([kind, *types[1:]], attrs)


def remove(case: Case, coupling, index: int) -> Case:
    """The case without `index` on every axis of the coupling; a depthwise channel takes its group along."""
    arrays = list(case.arrays)
    for name, axis in coupling:
        if name != "y":
            slot = case.names.index(name)
            arrays[slot] = np.delete(arrays[slot], index, axis)
    attrs = dict(case.attrs)
    if case.op.name == "conv2d" and attrs.get("groups", 1) > 1:
        attrs["groups"] -= 1
    return Case(case.op, tuple(arrays), attrs)


@every_case
def test_axis_rule(case):
    """Removing an index as the rule says removes it from the output; if summed over, nothing changes."""
    full = case.run()
    for coupling in case.op.couple(case.types, case.op.complete(case.attrs)):
        lengths = {
            full.shape[a] if n == "y" else case.arrays[case.names.index(n)].shape[a] for n, a in coupling
        }
        assert len(lengths) == 1, f"{set(coupling)} couples axes of different lengths {lengths}"
        if lengths == {1}:
            continue
        index = min(lengths) // 2
        outputs = [axis for name, axis in coupling if name == "y"]
        if outputs:
            (axis,) = outputs
            wanted, start = np.delete(full, index, axis), case
        else:
            start = silence(case, coupling, index)
            wanted = start.run()
            assert not np.array_equal(wanted, full), (
                "the silenced index did not matter: the test would say nothing"
            )
        found = remove(start, coupling, index).run()
        if full.dtype == np.uint8:
            assert np.abs(found.astype(int) - wanted).max() <= 1
        else:
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def silence(case: Case, coupling, index: int) -> Case:
    """The case where the coupling's last operand is zero at that index, so that nothing is summed from it."""
    slot, axis = max((case.names.index(name), axis) for name, axis in coupling)
    arrays = list(case.arrays)
    arrays[slot] = arrays[slot].copy()
    np.moveaxis(arrays[slot], axis, 0)[index] = 0
    return Case(case.op, tuple(arrays), case.attrs)


@every_case
def test_flops_are_counted(case):
    attrs = case.op.complete(case.attrs)
    flops = case.op.flops(case.types, case.op.infer_types(case.types, attrs), attrs)
    assert isinstance(flops, int) and flops >= 0


def test_flops_by_hand():
    def flops(name, *shapes, **attrs):
        op, types = OPS[name], [TensorType(s) for s in shapes]
        full = op.complete(attrs)
        return op.flops(types, op.infer_types(types, full), full)

    # 4 x 4 outputs of 8 channels, each from 3 x 3 x 6 inputs, a multiply and an add for each
    assert flops("conv2d", (1, 6, 6, 6), (8, 6, 3, 3)) == 16 * 8 * 54 * 2
    assert (
        flops("conv2d", (2, 6, 6, 6), (6, 1, 3, 3), groups=6, strides=(2, 2), pads=(1, 1, 1, 1))
        == 2 * 9 * 6 * 9 * 2
    )
    assert flops("conv2d", (1, 6, 6, 8), (4, 8, 1, 1), layout="NHWC") == 36 * 4 * 8 * 2
    assert flops("linear", (5, 7), (3, 7)) == 5 * 3 * 7 * 2
    assert flops("matmul", (2, 5, 7), (7, 3)) == 2 * 5 * 3 * 7 * 2
    assert flops("add", (4, 1), (4, 5)) == 20


def test_activation_table_is_complete():
    assert set(ACTIVATIONS) - {"none"} <= set(OPS)
    for name, activation in ACTIVATIONS.items():
        if name != "none":
            assert set(activation.params) == set(OPS[name].attrs)


def test_rule_errors_are_bitsmith_errors():
    assert issubclass(TypeRuleError, BitsmithError)


# What has no kernel of its own on a target is lowered through Relax in test_kernels.py.
RELAX_CASES = [
    p
    for p in CASES
    if not (p.values[0].quantised or p.values[0].narrow)
    and p.values[0].op.relax is not None
    and p.values[0].op.name in RULES
]


@pytest.fixture(scope="module")
def relax_outputs():
    """Every sample without scales through its relax lowering, in one module: it builds faster than many."""
    import tvm
    from tvm import relax

    block = relax.BlockBuilder()
    for i, param in enumerate(RELAX_CASES):
        case = param.values[0]
        arrays = [
            None if a is None else relax.Var(f"a{j}", relax.TensorType(a.shape, a.dtype.name))
            for j, a in enumerate(case.arrays)
        ]
        with block.function(f"case{i}", [v for v in arrays if v is not None]):
            block.emit_func_output(block.emit(case.op.relax(arrays, case.op.complete(case.attrs))))
    machine = relax.VirtualMachine(relax.build(block.finalize(), tvm.target.Target("llvm")), tvm.cpu())
    found = {}
    for i, param in enumerate(RELAX_CASES):
        case = param.values[0]
        found[param.id] = machine[f"case{i}"](
            *[tvm.runtime.tensor(a) for a in case.arrays if a is not None]
        ).numpy()
    return found


@pytest.mark.parametrize(("case", "key"), [pytest.param(p.values[0], p.id, id=p.id) for p in RELAX_CASES])
def test_the_relax_lowering_agrees(case, key, relax_outputs):
    wanted = case.run()
    assert relax_outputs[key].dtype == wanted.dtype
    np.testing.assert_allclose(relax_outputs[key], wanted, rtol=1e-4, atol=1e-4)
