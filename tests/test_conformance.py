"""ONNX's own operator tests: a part of them compiled here, and the page on all of them."""

import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from bitsmith.compiler.frontends.onnx.ops import RULES
from onnx import helper

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
run, table, command = (
    import_module(name) for name in ("conformance_run", "conformance_table", "conformance")
)
PAGE = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")

# One or two of each family, of all element types, in old and new operator sets.
COMPILED = """
    abs add add_uint8 and_bcast4v4d argmax_keepdims_random_select_last_index argmin_default_axis_example
    averagepool_2d_ceil averagepool_3d_default basic_conv_with_padding bitshift_right_uint16
    bitwise_xor_ui8_bcast_4v3d cast_DOUBLE_to_FLOAT16 cast_FLOAT16_to_DOUBLE celu_expanded
    clip_default_int8_inbounds compress_1 concat_3d_axis_negative_2 constant_pad cumsum_2d_negative_axis
    cumsum_1d_reverse_exclusive depthtospace_crd_mode_example div_int32_trunc elu_expanded_ver18
    equal_string expand_dim_changed eyelike_with_dtype flatten_axis2 gather_negative_indices
    gather_elements_1 gathernd_example_int32 gelu_tanh_1 gemm_all_attributes globalmaxpool
    greater_equal_uint64 hardmax_axis_1 isinf_negative less_uint16 logsoftmax_large_number matmul_bcast
    max_uint64 maxpool_with_argmax_2d_precomputed_pads maxpool_3d_dilations
    maxunpool_export_with_output_shape mean_one_input mod_int64_fmod mod_mixed_sign_int16 mish
    nllloss_NCd1d2_with_weight_reduction_mean onehot_negative_indices pow_types_int64_float32
    prelu_broadcast range_int32_type_negative_delta reduce_l2_keep_dims_random
    reduce_log_sum_exp_empty_set reduce_prod_negative_axes_keepdims_random reduce_min_bool_inputs
    reshape_zero_and_negative_dim reversesequence_batch round scatter_elements_with_reduction_min
    scatternd_multiply sce_NCd1d2d3_none_no_weight_negative_ii shrink_soft slice_neg_steps
    softplus_example split_to_sequence_1 split_variable_parts_2d_opset18 swish top_k_uint64
    transpose_all_permutations_3
    tril_neg triu_square unsqueeze_two_axes where_long_example xor_bcast3v1d
""".split()


@pytest.mark.parametrize("name", COMPILED)
def test_a_part_of_them(name):
    outcome = run.run_case(run.cases()[f"test_{name}"])
    wanted = "unsupported" if name == "equal_string" else "passed"
    assert outcome.status == wanted, outcome.reason


def test_another_result_and_another_failure_are_outcomes():
    case = run.cases()["test_add"]
    swapped = run.run_case(case, lambda graph, feeds: [{"sum": feed["x"] - feed["y"]} for feed in feeds])
    assert swapped.status == "wrong" and "Mismatched elements" in swapped.reason
    narrow = run.run_case(case, lambda graph, feeds: [{"sum": np.float16(f["x"] + f["y"])} for f in feeds])
    assert narrow.status == "wrong"
    broken = run.run_case(case, lambda graph, feeds: feeds[7])
    assert broken.status == "error" and "IndexError" in broken.reason


def test_inputs_that_decide_shapes_are_named():
    outcome = run.run_case(run.cases()["test_tile"], run.run_reference_executor)
    assert (outcome.status, outcome.constants) == ("passed", ("y",))


def test_a_model_with_text_does_not_count():
    text = helper.make_tensor_value_info("x", onnx.TensorProto.STRING, [2])
    floats = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])
    opened = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])
    node = helper.make_node("Identity", ["x"], ["y"])
    for inputs, counts in (([text], False), ([floats], True), ([opened], False)):
        model = helper.make_model(helper.make_graph([node], "g", inputs, [floats]))
        assert run.counts(model) == counts


def test_the_command_prints_totals_and_says_failure_by_its_code(capsys, tmp_path):
    made = tmp_path / "rows.json"
    assert command.main(["--reference", "--filter", "^test_(relu|equal_string)$", "--json", str(made)]) == 0
    assert (
        "Of 2 tests: 1 passed, 1 unsupported, 0 wrong, 0 error. Of the 1 that count"
        in capsys.readouterr().out
    )
    assert '"operator": "Relu"' in made.read_text()


def rows():
    """operator -> (passed, tests, reasons) of the page."""
    found = re.findall(r"^\| (\S+) \| (\d+) \| (\d+) \| (.*?) ?\|$", PAGE, re.M)
    return {op: (int(passed), int(of), reasons) for op, passed, of, reasons in found}


def test_the_page_is_what_the_rules_say():
    """An operator with a rule passes at least one of its tests; one that is said to have none has none."""
    refused = {"Not"}  # its tests are of operator set 1
    for op, (passed, of, reasons) in rows().items():
        assert passed <= of and bool(reasons) == (passed < of), op
        expected = op in RULES and op not in refused
        assert expected <= (passed > 0), f"{op} has a rule, but passes nothing: {reasons}"
        if f"{op} x 1: bitsmith has no conversion for it yet" in reasons:
            assert op not in RULES, f"{op} has a rule now: run benchmarks/conformance.py"


def test_the_pages_totals():
    said = re.search(r"Of (\d+) tests: (\d+) passed, (\d+) unsupported, 0 wrong, 0 error\.", PAGE)
    assert said, "a test is wrong"
    tests, passed, unsupported = map(int, said.groups())
    assert tests == passed + unsupported == sum(of for _, of, _ in rows().values())
    assert passed == sum(count for count, _, _ in rows().values())
    assert float(re.search(r"pass: ([\d.]+) %", PAGE)[1]) >= 85
    assert f"ONNX {onnx.__version__}" in PAGE or "1.23" not in onnx.__version__


def test_the_page_is_what_its_writer_writes():
    outcome = run.Outcome("test_a", "Relu", True, "unsupported", "a | b")
    page = table.document([outcome, run.Outcome("test_b", "Relu", True, "passed")])
    assert page.endswith("| Relu | 1 | 2 | a \\| b (1) |\n")
    assert (
        "Of 2 tests: 1 passed, 1 unsupported, 0 wrong, 0 error. Of the 2 that count, 1 pass: 50.0 %." in page
    )
    assert PAGE.split("\n\n")[0] == page.split("\n\n")[0]
