"""Einsum becomes products, transposes and reshapes with numpy's result."""

import numpy as np
import pytest
from bitsmith.compiler.errors import ModelError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.plan import layers_of
from bitsmith.compiler.reference import run_reference
from onnx_models import model, node

CASES = [
    ("ij->ji", [(3, 4)]),
    ("ij->", [(3, 4)]),
    ("ij->i", [(3, 4)]),
    ("ii->i", [(4, 4)]),
    ("...ii->...i", [(2, 3, 3)]),
    ("ii", [(4, 4)]),
    ("i,i", [(5,), (5,)]),
    ("i,j->ij", [(3,), (4,)]),
    ("ij,jk->ik", [(2, 3), (3, 4)]),
    ("ij,jk", [(2, 3), (3, 4)]),
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
    ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)]),
    ("bqhd,bkhd->bhqk", [(2, 4, 3, 5), (2, 6, 3, 5)]),
    ("...ij,...jk->...ik", [(2, 1, 3, 4), (1, 5, 4, 2)]),
    ("abc,cde->abde", [(2, 3, 4), (4, 5, 2)]),
    ("ij,ik,il->jkl", [(2, 3), (2, 4), (2, 5)]),
    ("abc,ab->c", [(2, 3, 4), (2, 3)]),
    ("ab,cb->abc", [(2, 3), (4, 3)]),
    ("bn i d , b n j d -> b n j i", [(1, 2, 3, 4), (1, 2, 5, 4)]),
]


def run(equation, shapes, constants=0):
    """(graph, result, numpy's); the last `constants` operands are weights."""
    rng = np.random.default_rng(1)
    arrays = {f"x{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    fixed = list(arrays)[len(arrays) - constants :]
    inputs = {name: a.shape for name, a in arrays.items() if name not in fixed}
    weights = {name: arrays[name] for name in fixed}
    graph = load_model(model([node("Einsum", " ".join(arrays), equation=equation)], inputs, weights=weights))
    found = run_reference(graph, {name: arrays[name] for name in inputs})["y"]
    return graph, found, np.einsum(equation.replace(" ", ""), *arrays.values())


@pytest.mark.parametrize(("equation", "shapes"), CASES)
def test_einsum_is_numpys(equation, shapes):
    _, found, want = run(equation, shapes)
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_a_projection_with_known_weights_is_a_layer():
    graph, found, want = run("abc,cde->abde", [(2, 3, 4), (4, 5, 2)], constants=1)
    assert [n.op for n in layers_of(graph)] == ["linear"]
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_weights_that_share_a_batch_axis_are_no_layer():
    graph, found, want = run("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], constants=1)
    assert not layers_of(graph)
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_a_label_that_nobody_has_is_refused():
    with pytest.raises(ModelError, match="label missing"):
        load_model(model([node("Einsum", "x", equation="ij->k")], {"x": (2, 3)}))
