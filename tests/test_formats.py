"""Weight formats: the contract, for every row of the table, and the published errors."""

import numpy as np
import pytest
from bitsmith.compiler.errors import BitsmithError, FormatError
from bitsmith.compiler.formats import (
    FAMILIES,
    bits_per_weight,
    codes_of,
    decode,
    encode,
    family_of,
    format_names,
    format_of,
    levels,
    scales,
    side_of,
    tables,
)
from bitsmith.compiler.formats.bitmod import bitmod_tables
from bitsmith.compiler.formats.fixed import fit, nearest_levels
from bitsmith.compiler.formats.float_codes import NORMAL, signed_table
from bitsmith.compiler.formats.packing import pack, unpack
from bitsmith.compiler.formats.scales import Store

GROUPS = ("32", "128", "channel")
EVERY = [f"{name}:{group}" for name in format_names() for group in GROUPS]
TWO_LEVEL = [f"{name}:32:two-level" for name in format_names()]
WIDE = [f"{name}:32:float32" for name in format_names()]


def gaussian(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def relative_error(weight, coded, importance=1.0):
    return float(
        (np.square(weight - decode(coded)) * importance).sum() / (np.square(weight) * importance).sum()
    )


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
def test_a_format_reads_as_it_prints(text):
    format = format_of(text)
    assert format_of(str(format)) == format
    assert (format.scale == "two-level") >= text.endswith("two-level")
    assert str(format.group or "channel") == text.split(":")[1]


def test_defaults_of_names():
    assert str(format_of("bitmod4")) == "bitmod4:128" and format_of("bitmod4").scale == "two-level"
    assert format_of("bitmod4:channel").scale == "float16" and format_of("int4").scale == "float16"
    assert str(format_of("bitmod4:64:float16")) == "bitmod4:64:float16"
    assert format_of("int4a:64").family == "inta" and format_of("int4a:64").bits == 4


@pytest.mark.parametrize(
    "text, words",
    [
        ("int9", "there is no weight format 'int9'"),
        ("int8a", "there are int2, int3"),
        ("", "no weight format ''"),
        ("int4:33", "multiple of 8"),
        ("int4:0", "multiple of 8"),
        ("int4:8192", "to 4096"),
        ("int4:-8", "neither 'channel'"),
        ("int4:64:bfloat16", "float16 or two-level or float32"),
        ("int4:64:float16:more", "name:group:scale"),
        ("int4:channel:two-level", "one group in a row"),
    ],
)
def test_what_is_no_format_is_refused_with_what_there_is(text, words):
    with pytest.raises(FormatError, match=words) as caught:
        format_of(text)
    assert isinstance(caught.value, BitsmithError)


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
@pytest.mark.parametrize("k", [256, 200, 13])
def test_codes_scales_and_levels_are_the_decoded_weight(text, k):
    """The stored arrays mean what Coded says, by a slow computation of its own from their bytes."""
    weight, format = gaussian(5, k), format_of(text)
    coded = encode(weight, format)
    width, groups = format.group or k, format.groups(k)
    table, scale = levels(coded), scales(coded)
    assert table.dtype == np.int8 and table.shape == (5, groups, 2**format.bits) and table.min() >= -127
    for row, column in [(0, 0), (4, k - 1), (2, k // 2), (3, width - 1 if width <= k else 0)]:
        group, place = divmod(column, width)
        stream = int.from_bytes(coded.arrays["codes"][row, group].tobytes(), "little")
        code = stream >> (place * format.bits) & (2**format.bits - 1)
        assert codes_of(coded)[row, group, place] == code
        expected = np.float32(scale[row, group] * np.float32(table[row, group, code]))
        assert decode(coded)[row, column] == expected


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
def test_what_was_decoded_is_coded_to_the_same(text):
    """Coding again changes far less than coding did; pure shift-add finds its alphas less surely."""
    weight = gaussian(6, 160)
    once = decode(encode(weight, format_of(text)))
    again = decode(encode(once, format_of(text), np.ones(160)))
    size = np.square(once - weight).sum()
    assert np.square(again - once).sum() <= (0.5 if format_of(text).family == "shiftaddp" else 0.1) * size


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
@pytest.mark.parametrize("k", [256, 200])
def test_bits_are_counted_exactly(text, k):
    format = format_of(text)
    coded = encode(gaussian(4, k), format)
    assert 8 * coded.nbytes == round(bits_per_weight(format, k) * 4 * k)
    assert bits_per_weight(format, k) > format.bits


def test_bits_of_published_formats():
    assert bits_per_weight(format_of("int4:32"), 4096) == 4.5
    assert bits_per_weight(format_of("int4a:128"), 4096) == 4 + 24 / 128
    assert bits_per_weight(format_of("bitmod4"), 4096) == 4 + 10 / 128 + 32 / 4096
    assert bits_per_weight(format_of("bitmod3"), 4096) == 3 + 10 / 128 + 32 / 4096
    assert bits_per_weight(format_of("int8:channel"), 4096) == 8 + 16 / 4096


def coarseness(text):
    """How far off a value may be that stands alone: pure shift-add has little more than powers of two."""
    return 0.35 if format_of(text).family == "shiftaddp" else 0.02


def by_family():
    for family in FAMILIES.values():
        if len(family.widths) > 1:
            yield pytest.param([family.format_name(bits) for bits in sorted(family.widths)], id=family.key)


@pytest.mark.parametrize("names", tuple(by_family()))
@pytest.mark.parametrize("importance", [None, np.ones(512)], ids=["rounded", "searched"])
def test_more_bits_never_hurt(names, importance):
    weight = gaussian(16, 512)
    errors = [relative_error(weight, encode(weight, format_of(f"{name}:64"), importance)) for name in names]
    assert all(b < a for a, b in zip(errors, errors[1:], strict=False)), errors


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
def test_a_search_finds_no_more_error_than_rounding(text):
    weight = gaussian(8, 256)
    importance = np.random.default_rng(1).random(256) ** 3 + 0.01
    searched = relative_error(weight, encode(weight, format_of(text), importance), importance)
    rounded = relative_error(weight, encode(weight, format_of(text)), importance)
    binary = family_of(format_of(text)).side == "alpha"
    assert searched <= rounded * (1.02 if binary else 1), "alternation ends where no single step helps"


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
@pytest.mark.parametrize("importance", [None, np.ones(256)], ids=["rounded", "searched"])
def test_groups_of_zeros_stay_zeros(text, importance):
    weight = gaussian(4, 256)
    weight[1] = 0
    weight[2, :128] = 0
    decoded = decode(encode(weight, format_of(text), importance))
    assert np.isfinite(decoded).all() and (decoded[1] == 0).all()
    if not text.endswith("channel"):
        assert (decoded[2, :128] == 0).all()


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
@pytest.mark.parametrize("importance", [None, np.ones(128)], ids=["rounded", "searched"])
def test_one_outlier_is_kept(text, importance):
    weight = np.zeros((2, 128), np.float32)
    weight[0, 5], weight[1, 77] = 3.0, -7.0
    decoded = decode(encode(weight, format_of(text), importance))
    near = coarseness(text)
    assert decoded[0, 5] == pytest.approx(3.0, rel=near) and decoded[1, 77] == pytest.approx(-7.0, rel=near)
    others = np.delete(decoded, 5, 1)[0], np.delete(decoded, 77, 1)[1]
    assert all(np.abs(each).max() <= 0.5 * 7 for each in others)


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
def test_a_constant_group_is_kept(text):
    values = np.asarray([[0.37], [-0.37], [1e-3]], np.float32)
    decoded = decode(encode(np.repeat(values, 128, 1), format_of(text)))
    assert np.allclose(decoded, values, rtol=coarseness(text))


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
def test_small_groups_beside_a_large_one(text):
    """Two-level scales: a group that needs less than one of 255 steps does not become noise."""
    weight = gaussian(2, 128)
    weight[:, :64] *= 1e-5
    decoded = decode(encode(weight, format_of(text)))
    assert np.abs(decoded[:, :32]).max() <= max(1e-4, np.abs(weight).max() / 2) and np.isfinite(decoded).all()


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-20])
def test_almost_nothing_stays_almost_nothing(text, size):
    weight = (gaussian(3, 64) * np.float32(size)).astype(np.float32)
    for importance in (None, np.ones(64)):
        assert np.abs(decode(encode(weight, format_of(text), importance))).max() <= 8 * size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", format_names())
def test_values_that_are_not_finite_are_refused(name, bad):
    weight = gaussian(2, 64)
    weight[1, 3] = bad
    with pytest.raises(FormatError, match="not finite"):
        encode(weight, format_of(name))


def test_other_bad_weights_are_refused():
    with pytest.raises(FormatError, match=r"shape \[3\] is no matrix"):
        encode(np.ones(3, np.float32), format_of("int4"))
    with pytest.raises(FormatError, match=r"\[0, 4\]"):
        encode(np.ones((0, 4), np.float32), format_of("int4"))
    with pytest.raises(FormatError, match="int4:32:two-level"):
        encode(np.full((1, 32), 1e30, np.float32), format_of("int4:32"))
    for bad in (np.ones(3), -np.ones(4), np.full(4, np.nan)):
        with pytest.raises(FormatError, match="importance must be 4"):
            encode(np.ones((2, 4), np.float32), format_of("int4"), bad)


def test_large_weights_have_two_level_scales():
    weight = gaussian(2, 64) * 1e20
    assert relative_error(weight.astype(np.float64), encode(weight, format_of("int8:32:two-level"))) < 1e-3


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
def test_stored_arrays_are_the_documented_ones(text):
    format = format_of(text)
    coded = encode(gaussian(3, 200), format)
    n, groups = 3, format.groups(200)
    expected = {"codes": (np.uint8, (n, groups, -(-(format.group or 200) * format.bits // 8)))}
    if format.scale == "two-level":
        expected |= {"scale": (np.uint8, (n, groups)), "row_scale": (np.float32, (n,))}
    else:
        expected["scale"] = (np.dtype(format.scale).type, (n, groups))
    side = family_of(format).side
    expected |= {
        "": {},
        "selector": {"selector": (np.uint8, (n, -(-groups // 4)))},
        "zero": {"zero": (np.uint8, (n, groups))},
        "alpha": {"alpha": (np.int8, (n, groups, format.bits))},
    }[side]
    assert {name: (a.dtype, a.shape) for name, a in coded.arrays.items()} == expected
    assert not any(a.flags.writeable for a in coded.arrays.values())


@pytest.mark.parametrize("text", [*EVERY, *TWO_LEVEL, *WIDE])
def test_a_short_last_group_is_filled_with_the_least_level(text):
    coded = encode(gaussian(3, 200), format_of(text))
    filler = codes_of(coded)[:, -1, 200 - coded.format.width(200) * (coded.groups - 1) :]
    table = np.abs(levels(coded)[:, -1].astype(int))
    chosen = np.take_along_axis(table, filler.astype(int), 1)
    assert (chosen == table.min(1, keepdims=True)).all()


@pytest.mark.parametrize("name", format_names())
def test_codes_are_the_nearest_levels(name):
    """Against a search over all levels, in float64."""
    weight, format = gaussian(8, 128), format_of(f"{name}:32")
    coded = encode(weight, format)
    possible = levels(coded).astype(np.float64) * scales(coded)[:, :, None].astype(np.float64)
    groups = weight.reshape(8, 4, 32).astype(np.float64)
    least = np.abs(groups[..., None] - possible[:, :, None, :]).min(-1)
    found = np.abs(groups - decode(coded).reshape(8, 4, 32))
    assert np.allclose(found, least, atol=1e-5)


@pytest.mark.parametrize("name", format_names())
def test_rows_do_not_depend_on_each_other(name):
    weight = gaussian(300, 520)
    whole, part = encode(weight, format_of(name)), encode(weight[290:], format_of(name))
    assert all(np.array_equal(a[290:], part.arrays[key]) for key, a in whole.arrays.items())
    assert np.array_equal(decode(whole)[290:], decode(part))
    assert np.array_equal(decode(whole.rows(290, 300)), decode(part))


def test_packing_is_a_stream_of_bits():
    rng = np.random.default_rng(0)
    for bits in range(1, 9):
        for size in (1, 7, 8, 13, 64):
            codes = rng.integers(0, 2**bits, (3, size)).astype(np.uint8)
            packed = pack(codes, bits)
            stream = np.unpackbits(codes[..., None], axis=-1, count=bits, bitorder="little").reshape(3, -1)
            assert np.array_equal(packed, np.packbits(stream, axis=-1, bitorder="little"))
            assert np.array_equal(unpack(packed, bits, size), codes)


# What follows are the errors that BitMoD's authors and we measured on Gaussian groups of 128.


def table_error(found):
    groups = gaussian(400, 128)
    parameters = fit(groups, found, np.abs(found).max(1).astype(np.float32), None, Store())
    decoded = parameters.scale[:, None] * nearest_levels(groups, found, parameters)
    return np.square(groups - decoded).sum() / np.square(groups).sum()


@pytest.mark.parametrize(
    "name, error",
    [
        ("int3", 0.0776),
        ("int3a", 0.0475),
        ("fp3", 0.0577),
        ("bitmod3", 0.0385),
        ("int4a", 0.0103),
        ("fp4", 0.0120),
        ("bitmod4", 0.0096),
    ],
)
def test_published_errors_of_formats(name, error):
    weight = gaussian(400, 128)
    assert relative_error(weight, encode(weight, format_of(name))) == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize(
    "bits, kind, error", [(3, "ER", 0.0481), (3, "EA", 0.0390), (4, "ER", 0.0100), (4, "EA", 0.0116)]
)
def test_published_errors_of_one_kind_of_special_value(bits, kind, error):
    found = bitmod_tables(bits)[:2] if kind == "ER" else bitmod_tables(bits)[2:]
    assert table_error(found) == pytest.approx(error, rel=0.05)


def test_published_tables():
    assert sorted(set(signed_table(4)[0].tolist())) == [-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12]
    specials = [(set(t) - set(signed_table(3)[0].tolist())) for t in bitmod_tables(3).tolist()]
    assert specials == [{3}, {-3}, {6}, {-6}]
    (table,) = tables(format_of("nf4"))
    assert np.allclose(table / 127, NORMAL, atol=0.0041) and (np.diff(table.astype(int)) > 0).all()


def test_selectors_are_four_in_a_byte():
    coded = encode(gaussian(3, 9 * 32), format_of("bitmod3:32"))
    side, stored = side_of(coded), coded.arrays["selector"]
    assert side.shape == (3, 9) and side.max() == 3
    assert all(stored[r, g // 4] >> 2 * (g % 4) & 3 == side[r, g] for r in range(3) for g in range(9))


def test_alphas_of_shift_add_are_few_powers_of_two():
    """Each alpha is among all sums of three signed powers; those of the pure form are powers."""
    powers = [0, *(s * 2**e for e in range(8) for s in (1, -1))]
    three = {a + b + c for a in powers for b in powers for c in powers}
    weight = gaussian(40, 256)
    for bits in (2, 3, 4):
        alphas = encode(weight, format_of(f"shiftadd{bits}:32")).arrays["alpha"]
        assert set(np.abs(alphas.astype(int)).ravel().tolist()) <= three and (alphas >= 0).all()
        pure = encode(weight, format_of(f"shiftadd{bits}p:32")).arrays["alpha"]
        assert set(pure.ravel().tolist()) <= {0, 1, 2, 4, 8, 16, 32, 64}
        assert (pure.astype(int).sum(-1) <= 127).all() and (alphas.astype(int).sum(-1) <= 127).all()


@pytest.mark.parametrize("name", ["shiftadd3", "shiftadd4p"])
def test_scales_of_shift_add_are_shifts(name):
    fraction, _ = np.frexp(scales(encode(gaussian(40, 256), format_of(f"{name}:32"))))
    assert set(fraction.ravel().tolist()) == {0.5}


@pytest.mark.parametrize("importance", [None, np.random.default_rng(4).random(64) + 0.1])
def test_binary_codes_of_two_bits_are_near_the_best_of_all(importance):
    """Against a search over a fine grid of both alphas, of which the least error is taken for each group."""
    weight = gaussian(30, 64)
    parts = np.ones(64) if importance is None else importance
    best = np.full(30, np.inf)
    for a in np.linspace(0.4, 2.2, 37):
        for b in np.linspace(0.1, 1.2, 34):
            table = np.asarray([-a - b, -a + b, a - b, a + b])
            error = np.square(np.abs(weight[:, :, None] - table).min(-1)) @ parts
            best = np.minimum(best, error)
    decoded = decode(encode(weight, format_of("bcq2:64"), importance))
    found = np.square(weight - decoded) @ parts
    assert found.sum() <= 1.02 * best.sum()


def test_more_terms_and_free_scales_fit_better():
    weight = gaussian(60, 512)
    names = ("shiftadd4p", "shiftadd4p:128:two-level", "shiftadd4:128:two-level", "bcq4:128:two-level")
    errors = [relative_error(weight, encode(weight, format_of(name))) for name in names]
    assert errors[0] > errors[1] > errors[2] > 0.95 * errors[3]
