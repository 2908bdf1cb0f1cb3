"""torch modules become graphs that compute what the modules compute."""

import numpy as np
import pytest
import torch
from bitsmith.compiler.errors import InputError, ModelError, UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.reference import run_reference
from nets import NETS, imported
from torch import nn


def answers(graph, *arrays):
    """Outputs of the reference executor, in order."""
    named = {name: np.asarray(array) for (name, _), array in zip(graph.inputs, arrays, strict=True)}
    found = run_reference(graph, named)
    return [found[name] for name in graph.outputs]


def eager(module, *tensors):
    with torch.no_grad():
        return module(*tensors).numpy()


@pytest.mark.parametrize("name", NETS)
def test_whole_networks_agree_with_torch(name):
    graph, x, wanted = imported(name)
    (found,) = answers(graph, x)
    assert np.abs(wanted).max() > 0.1, "the network is dead: the comparison would say nothing"
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_layers_are_called_after_their_modules():
    module, _ = NETS["mobilenet_v3"]()
    graph, _, _ = imported("mobilenet_v3")
    convolutions = [path for path, part in module.named_modules() if isinstance(part, nn.Conv2d)]
    assert [node.name for node in graph.nodes if node.op == "conv2d"] == convolutions
    assert [node.name for node in graph.nodes if node.op == "linear"] == ["5.fc"]
    assert {"5.fc.weight", "5.fc.bias"} <= set(graph.params)


def test_two_exports_are_the_same_graph():
    module, x = NETS["mlp"]()
    graph, _, _ = imported("mlp")
    assert load_model(module, inputs=(x,)).content_hash == graph.content_hash


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.drop(self.fc(x)))


def test_the_module_is_exported_in_evaluation_mode_and_left_as_it_was():
    module = Dropped().train()
    module.drop.eval()
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    graph = load_model(module, inputs=(x,))
    assert (module.training, module.fc.training, module.drop.training, module.norm.training) == (
        True,
        True,
        False,
        True,
    )
    assert int(module.norm.num_batches_tracked) == 0
    np.testing.assert_allclose(answers(graph, x.numpy())[0], eager(module.eval(), x), atol=1e-5)


def test_an_export_that_fails_is_silent_and_restores_the_module(capfd):
    module = Branching().train()
    with pytest.raises(ModelError, match="Branching: torch cannot export the module: .*data-dependent"):
        load_model(module, inputs=(torch.ones(2),))
    assert module.training
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "how",
    [
        lambda x: {"inputs": [x.numpy()]},
        lambda x: {"inputs": x},
        lambda x: {"shapes": {"x": (2, 4)}},
    ],
)
def test_ways_to_give_the_inputs(how, capfd):
    module = Dropped().eval()
    x = torch.ones(2, 4)
    graph = load_model(module, **how(x))
    assert [(name, kind.shape) for name, kind in graph.inputs] == [("x", (2, 4))]
    np.testing.assert_allclose(answers(graph, x.numpy())[0], eager(module, x), atol=1e-5)
    assert capfd.readouterr() == ("", "")


class TwoInputs(nn.Module):
    def forward(self, left, right):
        return left - right, left * right


def test_several_inputs_and_outputs_keep_their_order():
    left, right = torch.full((2, 3), 5.0), torch.full((3,), 2.0)
    graph = load_model(TwoInputs(), inputs={"right": right, "left": left})
    assert [name for name, _ in graph.inputs] == ["left", "right"]
    difference, product = answers(graph, left.numpy(), right.numpy())
    assert (difference == 3).all() and (product == 10).all()


class Passing(nn.Module):
    def forward(self, x):
        return x, x + 0.0, torch.ones(2)


def test_outputs_that_are_inputs_or_constants():
    x = np.array([1.0, 2.0], np.float32)
    graph = load_model(Passing(), inputs=(x,))
    assert [name for name, _ in graph.inputs] == ["x"]
    first, second, third = answers(graph, x)
    assert (first == x).all() and (second == x).all() and (third == 1).all()


class Twice(nn.Module):
    def forward(self, x, more):
        y = x * more["by"]
        return {"y": y, "both": (y, y + 1)}


def test_a_value_that_is_returned_twice_and_a_mapping_as_last_argument():
    x, by = torch.arange(3.0), torch.full((3,), 2.0)
    graph = load_model(Twice(), inputs=(x, {"by": by}))
    found = answers(graph, x.numpy(), by.numpy())
    np.testing.assert_array_equal(found, [[0, 2, 4], [0, 2, 4], [1, 3, 5]])


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return x * self.calls


def test_a_module_that_changes_its_buffers_is_refused_and_left_as_it_was():
    module = Counting()
    with pytest.raises(UnsupportedError, match="changes its buffers as it runs: calls; make them inputs"):
        load_model(module, inputs=(torch.ones(2),))
    assert module.calls.item() == 0


class Averaging(nn.Module):
    def forward(self, x):
        places = torch.tensor([0, 1, 1, 1]).expand(2, 4)
        return torch.zeros(2, 2).scatter_reduce(1, places, x, "mean")


def test_what_the_exporter_writes_wrongly_is_refused():
    """It has no form for this mean, and writes a plain scatter."""
    with pytest.raises(
        UnsupportedError, match="writes something else than the module computes .output 'scat"
    ):
        load_model(Averaging(), inputs=(torch.arange(8.0).reshape(2, 4),))


class Sampled(nn.Module):
    def forward(self, x):
        noise = torch.rand_like(x)
        return torch.linalg.det(x + noise) + torch.linalg.det(x)


class Foreign(nn.Module):
    def forward(self, x):
        return torch.linalg.qr(x)[0] + torch.special.bessel_j0(x) + torch.special.bessel_j0(x * 2)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else x * 2


def test_all_unsupported_onnx_operators_are_listed():
    with pytest.raises(UnsupportedError) as caught:
        load_model(Sampled(), inputs=(torch.zeros(3, 3),))
    message = str(caught.value)
    assert message.startswith("Sampled:")
    assert "Det x 2" in message and "RandomUniformLike x 1" in message


def test_all_torch_operators_without_onnx_form_are_listed():
    with pytest.raises(UnsupportedError) as caught:
        load_model(Foreign(), inputs=(torch.zeros(3, 3),))
    message = str(caught.value)
    assert "linalg_qr" in message and "bessel_j0.default x 2" in message


def test_nan_weights_are_named():
    module, x = NETS["mlp"]()
    module.fc2.weight.data[3, 4] = float("nan")
    with pytest.raises(ModelError, match=r"fc2\.weight: 1 of 3072 values"):
        load_model(module, inputs=(x,))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "has no shapes of its own.*inputs="),
        ({"inputs": (torch.zeros(2, 4),), "shapes": {"x": (2, 4)}}, "not both"),
        ({"inputs": {"y": torch.zeros(2, 4)}}, "no argument 'y'; it has x"),
        ({"shapes": {"batch": 2}}, "no named dimensions"),
        ({"shapes": {"x": (2, 0)}}, "sizes are whole numbers of 1 or more"),
    ],
)
def test_inputs_that_do_not_fit(how, message):
    with pytest.raises(InputError, match=message):
        load_model(Dropped(), **how)


def test_inputs_of_a_wrong_shape():
    with pytest.raises(ModelError, match="Dropped: torch cannot export the module"):
        load_model(Dropped(), inputs=(torch.zeros(2, 5),))


def test_half_precision_is_computed_in_float32():
    module, x = NETS["mlp"]()
    wanted = eager(module, x)
    graph = load_model(module.half(), inputs=(x.half(),))
    assert {kind.dtype for node in graph.nodes if node.op != "cast" for kind in node.types} == {"float32"}
    np.testing.assert_allclose(answers(graph, x.half().numpy())[0], wanted, atol=2e-2)
