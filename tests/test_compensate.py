"""Error compensation, for every format: against rounding, a search over all codes, and its own promises."""

import itertools
import tracemalloc

import numpy as np
import pytest
from bitsmith.compiler.errors import FormatError
from bitsmith.compiler.formats import codes_of, decode, encode, format_names, format_of, levels, scales
from bitsmith.compiler.formats.compensate import Compensation, compensate, output_error
from bitsmith.compiler.formats.factor import blocks_of, factor_of

EVERY = [f"{name}:32" for name in format_names()]
SOME = [
    "int4:32",
    "int3a:32:two-level",
    "bitmod3:32",
    "nf4:channel",
    "bcq2:64",
    "shiftadd3p:32",
    "int2:channel",
]


def layer(n, k, seed=0, rank=12):
    """Weights, and a Hessian of inputs that depend on each other and differ in size."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(0.7 * rng.standard_normal(k))
    x = (
        rng.standard_normal((600, rank)) @ rng.standard_normal((rank, k)) + rng.standard_normal((600, k))
    ) * sizes
    return (0.02 * rng.standard_t(5, (n, k))).astype(np.float32), x.T @ x


def error(weight, coded, hessian):
    return output_error(weight, decode(coded), hessian).sum()


@pytest.mark.parametrize("text", EVERY)
def test_compensated_codes_are_better_than_rounded_and_searched_ones(text):
    weight, hessian = layer(24, 104)
    format = format_of(text)
    found = error(weight, compensate(weight, hessian, format), hessian)
    assert found < 0.8 * error(weight, encode(weight, format), hessian)
    assert found < 0.8 * error(weight, encode(weight, format, np.diagonal(hessian)), hessian)


@pytest.mark.parametrize("text", SOME)
def test_what_is_stored_is_what_a_format_stores(text):
    weight, hessian = layer(9, 200)
    coded, rounded = compensate(weight, hessian, format_of(text)), encode(weight, format_of(text))
    assert {k: (a.shape, a.dtype) for k, a in coded.arrays.items()} == {
        k: (a.shape, a.dtype) for k, a in rounded.arrays.items()
    }
    assert coded.shape == (9, 200) and coded.nbytes == rounded.nbytes
    filler = codes_of(coded)[:, -1, 200 - coded.format.width(200) * (coded.groups - 1) :]
    chosen = np.take_along_axis(np.abs(levels(coded)[:, -1].astype(int)), filler.astype(int), 1)
    assert (chosen == np.abs(levels(coded)[:, -1].astype(int)).min(1, keepdims=True)).all()


@pytest.mark.parametrize("text", ["int2:8", "bitmod3:8", "shiftadd2:8"])
def test_no_single_code_can_be_bettered(text):
    """After the sweeps every code is the best beside all others: tried one by one, in float64."""
    weight, hessian = layer(3, 16, rank=4)
    damped = hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(16)
    coded = compensate(weight, hessian, format_of(text), Compensation(sweeps=40))
    possible = levels(coded).astype(np.float64) * scales(coded)[:, :, None]
    decoded = decode(coded).astype(np.float64)
    least = np.einsum("nk,kl,nl->n", weight - decoded, damped, weight - decoded)
    for row, column in itertools.product(range(3), range(16)):
        for level in possible[row, column // 8]:
            tried = weight[row] - decoded[row]
            tried[column] = weight[row, column] - level
            assert tried @ damped @ tried >= 0.99 * least[row]


def test_near_the_best_of_all_codes():
    """Two bits, six weights: against all 4096 codes with the same scale."""
    ratios = []
    for seed in range(12):
        weight, hessian = layer(1, 6, seed, rank=2)
        damped = hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(6)
        coded = compensate(weight, hessian, format_of("int2:channel"))
        scale = float(scales(coded)[0, 0])
        every = np.asarray(list(itertools.product((-2, -1, 0, 1), repeat=6))) * scale - weight[0]
        best = np.einsum("nk,kl,nl->n", every, damped, every).min()
        lacking = decode(coded)[0] - weight[0]
        ratios.append(float(lacking @ damped @ lacking) / best)
    assert np.median(ratios) < 1.3 and min(ratios) > 0.999


@pytest.mark.parametrize("text", SOME)
def test_sweeps_only_help(text):
    weight, hessian = layer(16, 128)
    damped = hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(128)
    errors = [
        error(weight, compensate(weight, hessian, format_of(text), Compensation(sweeps=sweeps)), damped)
        for sweeps in (0, 1, 4)
    ]
    assert errors[1] < errors[0] and errors[2] <= 1.0001 * errors[1]


@pytest.mark.parametrize("text", SOME)
def test_without_correlation_it_is_a_weighted_search(text):
    weight, _ = layer(8, 128)
    importance = np.random.default_rng(3).random(128) + 0.1
    found = error(weight, compensate(weight, np.diag(importance), format_of(text)), np.diag(importance))
    searched = error(weight, encode(weight, format_of(text), importance), np.diag(importance))
    assert found <= 1.03 * searched


@pytest.mark.parametrize("text", SOME)
def test_inputs_that_are_never_active_do_no_harm(text):
    weight, hessian = layer(8, 128)
    for dead in (slice(0, 32), slice(0, 128)):
        silent = hessian.copy()
        silent[dead] = 0
        silent[:, dead] = 0
        decoded = decode(compensate(weight, silent, format_of(text)))
        assert np.isfinite(decoded).all()
        assert np.square(decoded - weight)[:, :32].sum() < 0.7 * np.square(weight)[:, :32].sum()


@pytest.mark.parametrize("text", SOME)
def test_degenerate_weights(text):
    weight, hessian = layer(4, 128)
    weight[0] = 0
    weight[1] = 0.02
    weight[2, 1:] = 0
    decoded = decode(compensate(weight, hessian, format_of(text)))
    assert (decoded[0] == 0).all() and np.isfinite(decoded).all()
    lacking = output_error(weight, decoded, hessian)
    assert (lacking <= 1.0001 * output_error(weight, decode(encode(weight, format_of(text))), hessian)).all()


def test_a_hessian_of_few_samples_is_damped_until_it_can_be_factored():
    weight, _ = layer(4, 64)
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    hessian = (x.T @ x).astype(np.float32)
    found = error(weight, compensate(weight, hessian, format_of("int3:32")), hessian)
    assert found < 0.5 * error(weight, encode(weight, format_of("int3:32")), hessian)


def test_rows_do_not_depend_on_how_many_there_are():
    weight, hessian = layer(1100, 16)
    whole = compensate(weight, hessian, format_of("int3:8"))
    part = compensate(weight[1024:], hessian, format_of("int3:8"))
    assert np.array_equal(decode(whole)[1024:], decode(part))


def test_memory_is_that_of_the_hessian():
    """Documented: 16 bytes * k * k beside the arguments; the weight is small here."""
    weight, hessian = layer(4, 768)
    compensate(weight[:, :16], hessian[:16, :16], format_of("int4:16"))
    tracemalloc.start()
    compensate(weight, hessian, format_of("int4:128"), Compensation(sweeps=1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 12 * 768**2 < peak < 17.5 * 768**2


def test_a_factor_of_hessians_does_not_matter():
    weight, hessian = layer(8, 64)
    a, b = (compensate(weight, hessian * c, format_of("bitmod4:32")) for c in (1.0, 2.0**40))
    assert np.array_equal(decode(a), decode(b))


def test_the_factor_is_that_of_the_inverse():
    _, hessian = layer(1, 40)
    order = np.random.default_rng(0).permutation(40)
    factor = factor_of(hessian, order, 0.01).astype(np.float64)
    damped = hessian + 0.01 * np.diagonal(hessian).mean() * np.eye(40)
    assert (np.tril(factor, -1) == 0).all()
    assert np.allclose(factor.T @ factor @ damped[np.ix_(order, order)], np.eye(40), atol=1e-4)


def test_large_inputs_go_first_and_groups_stay_together():
    diagonal = np.asarray([1, 2, 9, 8, 3, 3, 3, 40, 20, 1, 1, 1, 1, 1, 1, 1, 5, 6, 7, 8.0])
    blocks = blocks_of(format_of("int4:8"), diagonal)
    assert [block.group for block in blocks] == [0, 2, 1]
    assert blocks[0].columns[:3].tolist() == [7, 2, 3] and blocks[1].columns.tolist() == [19, 18, 17, 16]


def test_bad_hessians_are_refused():
    weight, hessian = layer(4, 64)
    with pytest.raises(FormatError, match=r"needs a Hessian \[64, 64\], not \[63, 63\]"):
        compensate(weight, hessian[:63, :63], format_of("int4"))
    broken = hessian.copy()
    broken[3, 4] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        compensate(weight, broken, format_of("int4"))
    skew = np.eye(64)
    skew[0, 1] = skew[1, 0] = 1e6
    with pytest.raises(FormatError, match="not positive"):
        compensate(weight, skew, format_of("int4"))
    weight[0, 0] = np.nan
    with pytest.raises(FormatError, match="not finite"):
        compensate(weight, hessian, format_of("int4"))
