"""What can go wrong, as a tree.

    BitsmithError                  all that a user can cause; the CLI prints it and exits with `exit_code`
    |- ModelError          (3)     the model file or module cannot be read, or is not valid
    |  `- UnsupportedError (4)     the model is valid, but uses what bitsmith cannot compile; lists all of it
    |- InputError          (5)     arrays, shapes or options that do not fit
    |  `- FormatError      (5)     a weight format that does not exist, or a weight that it cannot hold
    |- PlanError           (6)     a plan that does not parse or does not fit its graph
    |- TargetError         (7)     the chip or toolchain cannot do what was asked
    |- ArtifactError       (8)     an artifact that is missing, damaged or not for this machine
    |- OutputError         (9)     the result cannot be written
    |- ConstraintError     (10)    no plan within the constraints (the search still reports the closest)
    |- DifferenceError     (11)    a layer of the artifact computes something else than it should
    `- InternalError       (70)    a broken promise of our own, such as an invalid graph; please report it

Messages say what is wrong, where, and how to mend it.
"""


class BitsmithError(Exception):
    """Base of all errors that bitsmith raises on purpose."""

    exit_code = 1


class ModelError(BitsmithError):
    exit_code = 3


class UnsupportedError(ModelError):
    """`inputs` names the model's inputs whose values, known beforehand, would make it supported."""

    exit_code = 4
    inputs: tuple[str, ...] = ()


class InputError(BitsmithError, ValueError):
    exit_code = 5


class FormatError(InputError):
    exit_code = 12


class PlanError(BitsmithError, ValueError):
    exit_code = 6


class TargetError(BitsmithError):
    exit_code = 7


class ArtifactError(BitsmithError):
    exit_code = 8


class OutputError(BitsmithError, OSError):
    exit_code = 9


class ConstraintError(BitsmithError):
    exit_code = 10


class DifferenceError(BitsmithError):
    exit_code = 11


class InternalError(BitsmithError):
    exit_code = 70
