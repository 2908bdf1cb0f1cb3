"""What an operator is: one record, with everything about it that does not depend on a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InternalError
from ..ir import AttrValue, TensorType

if TYPE_CHECKING:
    import torch

Types = Sequence[TensorType | None]
"""Input types of a node; None for an absent optional input."""
Attrs = Mapping[str, Any]
"""Attributes of a node (AttrValue each), completed with the operator's defaults; `infer` checks them."""
Slot = tuple[str, int]
"""An axis of an operand: `("x", 1)` is axis 1 of the input called x, `("y", 0)` axis 0 of the output."""
Coupling = frozenset[Slot]
REAL = ("float32", "float64")
NUMBERS = (*REAL, "int32", "int64", "uint32", "uint64")
"""What arithmetic is done in: narrower integers are widened before it (frontends/onnx/converter.py)."""


class TypeRuleError(InternalError):
    """A node's inputs or attributes break its operator's rules."""


def require(condition: bool, message: str) -> None:
    """Raise TypeRuleError unless the condition holds."""
    if not condition:
        raise TypeRuleError(message)


@dataclass(frozen=True)
class Sample:
    """Inputs and attributes that show an operator at work; the contract tests run every one.

    `inputs`: a TensorType (random values; uint8 and int8 over their whole range), an array (used as it is) or
    None (absent).
    `low`, `high` bound the random float values.
    """

    inputs: tuple[Any, ...]
    attrs: Attrs = field(default_factory=dict)
    low: float = -2.0
    high: float = 2.0


def no_coupling(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    """No axis of the output can be pruned by pruning inputs."""
    return ()


@dataclass(frozen=True)
class OpDef:
    """One operator.

    inputs      names of its inputs in order; those from index `required` on may be absent; ("*",): any number
    attrs       default of every attribute; a node may set no other. `None` stands for "must be given"
    infer       input types, attributes -> output types; raises TypeRuleError
    reference   input tensors (None when absent), attributes -> output tensor, or a tuple of them where there
                are several: slow, short, what the op means
    couple      axes that are pruned together: sets of slots; removing index i along all of a set with an
                output axis removes index i from the output and changes nothing else. A set without one is
                summed over: there, index i may leave when it contributes zero
    flops       input types, output types, attributes -> arithmetic operations (a multiply-add counts 2)
    relax       (relax expressions, attributes) -> relax expression: the lowering used where a target has no
                kernel of its own; None where every target has one (quantize, all with several outputs)
    samples     drive the contract tests
    layer       carries weights: a Plan decides about it
    plain       element types that it computes with as they are (uint8 that stands for real numbers is not
                among them); empty for operators that take any
    """

    name: str
    inputs: tuple[str, ...]
    required: int
    infer: Callable[[Types, Attrs], tuple[TensorType, ...]]
    reference: Callable[[Sequence[Any], Attrs], torch.Tensor | tuple[torch.Tensor, ...]]
    samples: tuple[Sample, ...]
    attrs: Mapping[str, AttrValue | None] = field(default_factory=dict)
    couple: Callable[[Types, Attrs], tuple[Coupling, ...]] = no_coupling
    flops: Callable[[Types, Sequence[TensorType], Attrs], int] = lambda types, outs, attrs: 0
    relax: Callable[[Sequence[Any], Attrs], Any] | None = None
    layer: bool = False
    plain: tuple[str, ...] = ("float32",)

    def complete(self, attrs: Attrs) -> dict[str, AttrValue]:
        """The attributes with defaults filled in. Raises TypeRuleError for an unknown or a missing one."""
        unknown = set(attrs) - set(self.attrs)
        require(not unknown, f"{self.name} has no attribute {', '.join(sorted(unknown))}")
        full = {**self.attrs, **attrs}
        missing = [k for k, v in full.items() if v is None]
        require(not missing, f"{self.name} needs attribute {', '.join(missing)}")
        return full

    def infer_types(self, types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        """Output types; checks the number of inputs first."""
        variadic = self.inputs == ("*",)
        most = "any number of" if variadic else str(len(self.inputs))
        fits = self.required <= len(types) and (variadic or len(types) <= len(self.inputs))
        require(fits, f"{self.name} takes {self.required} to {most} inputs, not {len(types)}")
        for i, kind in enumerate(types[: None if variadic else self.required]):
            name = str(i) if variadic else self.inputs[i]
            require(kind is not None, f"{self.name} needs its input {name!r}")
        return self.infer(types, attrs)


def require_plain(definition_plain: tuple[str, ...], *kinds: TensorType) -> None:
    """Raise TypeRuleError unless the operands have one element type, of those named."""
    shown = " and ".join(map(str, kinds))
    require(len({kind.dtype for kind in kinds}) == 1, f"operands must have one element type, got {shown}")
    allowed = ", ".join(definition_plain)
    require(kinds[0].dtype in definition_plain, f"operands must be of {allowed}, got {shown}")


def given(types: Types, index: int) -> TensorType:
    """The type of a required input."""
    kind = types[index]
    assert kind is not None
    return kind


def present(types: Types, index: int) -> TensorType | None:
    """The type of an optional input, None when absent or not listed."""
    return types[index] if index < len(types) else None


def broadcast_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """numpy's broadcasting rule. Raises TypeRuleError."""
    import numpy as np

    try:
        return tuple(int(d) for d in np.broadcast_shapes(a, b))
    except ValueError:
        raise TypeRuleError(f"shapes {a} and {b} do not broadcast") from None
