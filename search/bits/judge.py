"""How far a language model moves when its weights are coded: KL from the float model on some texts, what each
layer adds to it, and how much each output of each layer counts for it.

Everything runs in the reference executor; the weights are held once. What coded layers read is rounded to
int8 as the compiled ones do, with one scale for each group of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from ...compiler.errors import InputError
from ...compiler.formats import Format
from ...compiler.ir import Graph
from ...compiler.ops import OPS
from ...compiler.ops.coded import rounded_inputs

Runs = Sequence[Mapping[str, np.ndarray]]
ROWS = 64
"""Rows of logits that are compared at a time, in float64."""


class Judge:
    """`graph`: one output, logits [tokens, vocabulary]; `runs`: its inputs, as compiler/samples.py gives
    them.
    """

    def __init__(self, graph: Graph, runs: Runs) -> None:
        import torch

        self.graph, self.runs = graph, runs
        self.params = {name: torch.from_numpy(np.array(graph.params[name])) for name in graph.params}

    @cached_property
    def _wanted(self) -> list[Any]:
        """The float model's logits of each run: large, and not needed for curvatures."""
        return [self._logits(run, {}, {}) for run in self.runs]

    @property
    def tokens(self) -> int:
        return sum(len(logits) for logits in self._wanted)

    def kl(
        self, replaced: Mapping[str, np.ndarray], formats: Mapping[str, Format] = MappingProxyType({})
    ) -> float:
        """Mean over all tokens of KL(float || with these matrices in place of its own), nats; linear layers
        in `formats` read int8. Raises InputError where the logits are no numbers.
        """
        params, total = _tensors(replaced), 0.0
        for run, wanted in zip(self.runs, self._wanted, strict=True):
            total += sum(float(part) for part in _divergence(wanted, self._logits(run, params, formats)))
        return self._mean(total)

    def shares(
        self, replaced: Mapping[str, np.ndarray], formats: Mapping[str, Format]
    ) -> tuple[float, dict[str, float]]:
        """KL as above, and of each layer in `formats` that reads one of the matrices half the slope of KL
        along what the matrix adds to the layer's outputs: where KL is quadratic these sum to it (Euler). One
        backward pass in all; rounding of inputs is passed through. Raises InputError as `kl`.
        """
        import torch

        params, total = _tensors(replaced), 0.0
        layers = [node for node in self.graph.nodes if node.name in formats and {*node.inputs} & {*params}]
        found = dict.fromkeys((node.name for node in layers), 0.0)
        for run, wanted in zip(self.runs, self._wanted, strict=True):
            moved: dict[str, Any] = {}
            with torch.enable_grad():
                kept = self._forward(run, params, [node.output for node in layers], formats, moved)
                parts = list(_divergence(wanted, kept[self.graph.outputs[0]]))
                slopes = torch.autograd.grad(sum(parts), [kept[node.output] for node in layers])
            total += sum(float(part.detach()) for part in parts)
            for node, slope in zip(layers, slopes, strict=True):
                found[node.name] += float((slope * moved[node.output]).sum()) / 2
        return self._mean(total), {layer: self._mean(share) for layer, share in found.items()}

    def _mean(self, total: float) -> float:
        if not np.isfinite(total):
            raise InputError(f"the logits of {self.graph.name!r} with coded weights are not all numbers")
        return total / self.tokens

    def _logits(
        self, run: Mapping[str, np.ndarray], params: Mapping[str, Any], formats: Mapping[str, Format]
    ) -> Any:
        import torch

        with torch.no_grad():
            return self._forward(run, params, (), formats)[self.graph.outputs[0]]

    def _forward(
        self,
        run: Mapping[str, np.ndarray],
        params: Mapping[str, Any],
        watched: Sequence[str],
        formats: Mapping[str, Format],
        moved: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Values that are alive at the end, and those watched; `moved` gets what `params` add to these."""
        import torch

        values: dict[str, Any] = {name: torch.from_numpy(np.array(array)) for name, array in run.items()}
        last = {v: i for i, node in enumerate(self.graph.nodes) for v in node.inputs}
        kept = {*self.graph.outputs, *watched}
        for i, node in enumerate(self.graph.nodes):
            op = OPS[node.op]
            args = [self._value(v, values, params) if v else None for v in node.inputs]
            if node.op == "linear" and node.name in formats:
                args[0] = _rounded(args[0], formats[node.name])
            result = op.reference(args, op.complete(node.attrs))
            for value, tensor in zip(
                node.outputs, result if isinstance(result, tuple) else (result,), strict=True
            ):
                values[value] = _watched(tensor) if value in watched else tensor
            if moved is not None and node.outputs[0] in watched:
                own = [self.params[v] if v in params else a for v, a in zip(node.inputs, args, strict=True)]
                with torch.no_grad():
                    moved[node.output] = values[node.output] - op.reference(own, op.complete(node.attrs))
            for v in node.inputs:
                if last[v] == i and v not in kept:
                    values.pop(v, None)
        return values

    def _value(self, name: str, values: Mapping[str, Any], params: Mapping[str, Any]) -> Any:
        for source in (values, params):
            if name in source:
                return source[name]
        return self.params[name]

    def curvature(
        self,
        layers: Sequence[str],
        seed: int = 0,
        draws: int = 1,
        step: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, np.ndarray]:
        """float64 [outputs] for each layer: mean over tokens of the squared gradient of the log likelihood of
        tokens drawn from the model itself, with respect to the layer's outputs.

        That is the diagonal of the Fisher information, the second derivative of KL at the float model
        (Martens, JMLR 2020): moving the outputs by d costs about 1/2 sum curvature * mean d^2 nats a token.
        """
        import torch

        random = torch.Generator().manual_seed(seed)
        values = {layer: self.graph.node(layer).output for layer in layers}
        total = {layer: np.zeros(self.graph.type_of(value).shape[-1]) for layer, value in values.items()}
        rows = 0
        for done, run in enumerate(self.runs, 1):
            with torch.enable_grad():
                kept = self._forward(run, {}, tuple(values.values()), {})
                logits = kept[self.graph.outputs[0]]
                shares = logits.detach().softmax(-1)
                for draw in range(draws):
                    drawn = torch.multinomial(shares, 1, generator=random)[:, 0]
                    loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
                    chosen = [kept[value] for value in values.values()]
                    slopes = torch.autograd.grad(loss, chosen, retain_graph=draw + 1 < draws)
                    for layer, slope in zip(values, slopes, strict=True):
                        total[layer] += slope.double().square().reshape(-1, slope.shape[-1]).sum(0).numpy()
            rows += len(logits)
            step(done, len(self.runs))
        return {layer: each / (rows * draws) for layer, each in total.items()}


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.asarray(array, np.float32)) for name, array in arrays.items()}


def _divergence(wanted: Any, found: Any) -> Iterator[Any]:
    """Sums over tokens of KL(softmax of these logits || of those), some rows at a time, float64."""
    for begin in range(0, len(wanted), ROWS):
        theirs, ours = (each[begin : begin + ROWS].double().log_softmax(-1) for each in (wanted, found))
        yield (theirs.exp() * (theirs - ours)).sum()


def _rounded(tensor: Any, format: Format) -> Any:
    """As a layer with weights in this format reads it; gradients pass through."""
    found = rounded_inputs(tensor.detach(), format)
    return tensor + (found - tensor).detach() if tensor.requires_grad else found


def _watched(tensor: Any) -> Any:
    """The tensor as one that gradients reach; the first of them begins the graph of gradients."""
    return tensor if tensor.requires_grad else tensor.detach().requires_grad_()
