"""What is verified where: claims, and the tests that hold them. `python tests/verified_where.py` writes the table of docs/verification.md.

A cell is a test's name within its folder, "file::test". A claim without one is "not verified" there. No test runs on hardware yet: its
column is filled by `python -m moe_graph verify` on a machine with an NPU, or by tests that run there.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import marked

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "verification.md"
BEGIN, END = "<!-- verified: begin -->", "<!-- verified: end -->"
NOT_VERIFIED = "not verified"


@dataclass(frozen=True)
class Claim:
    """A sentence that the project claims, and tests of it on plain torch, on the simulated device and on hardware."""

    text: str
    plain: str | None = None
    simulated: str | None = None
    hardware: str | None = None


CLAIMS = (
    Claim(
        "eager results are the contract's, every dtype and mode",
        "test_fallback::test_matches_the_reference",
        "test_kernel_moe_re_routing::test_matches_the_reference",
    ),
    Claim(
        "shapes and dtypes while tracing, static and symbolic",
        "test_fake::test_meta_agrees_with_the_fallback",
        "test_graph_mode::test_composed_lowering",
    ),
    Claim(
        "bad input is refused while tracing",
        "test_fake::test_bad_input_is_refused_while_tracing",
        "test_graph_mode::test_bad_input_is_refused_while_tracing",
    ),
    Claim(
        "any arguments: a ValueError that names one, or the right result; fake and eager agree",
        "test_fuzz_arguments::test_accepted_and_right_or_refused_by_name",
    ),
    Claim("opcheck and torch.export", "test_compile::test_export"),
    Claim(
        "gradients",
        "test_autograd::test_gradcheck",
        "test_registration::test_gradient_on_the_npu_goes_through_its_kernel",
    ),
    Claim("the out= form", "test_out::test_writes_into_the_buffers"),
    Claim(
        "un-routing is the exact inverse",
        "test_fallback::test_un_routing_is_the_exact_inverse",
        "test_graph_mode::test_un_routing_is_one_node",
    ),
    Claim(
        "one compilation serves every token count",
        "test_compile::test_one_compilation_serves_every_token_count",
        "test_graph_mode::test_one_graph_serves_every_token_count",
    ),
    Claim(
        "after a graph break Dynamo leaves the kernels alone",
        "test_compile::test_dynamo_does_not_compile_the_kernels_after_a_graph_break",
        "test_device_eager::test_dynamo_does_not_compile_the_kernels_after_a_graph_break",
    ),
    Claim(
        "torch_npu's adapter hands the kernel the promised attributes",
        None,
        "test_kernel_moe_re_routing::test_calls_are_recorded",
    ),
    Claim("a native call is one MoeReRouting node", None, "test_graph_mode::test_native_call_is_one_node"),
    Claim("other calls are composed, with equal results", None, "test_graph_mode::test_composed_lowering"),
    Claim("the kernel's limits, by product", None, "test_kernel_product::test_dtypes_scales_and_attributes"),
    Claim(
        "a MoeReRouting node that the product's kernel lacks is an error of the engine",
        None,
        "test_kernel_product::test_the_node_is_refused_what_the_kernel_lacks",
    ),
    Claim("a way back by a sort is replaced", None, "test_passes::test_a_way_back_by_a_sort_is_replaced"),
    Claim(
        "any import order; unregistering restores",
        "test_registration::test_unregister_and_register_again",
        "test_registration::test_every_import_order",
    ),
    Claim(
        "kernel, graph mode and fallback agree over the grid of `verify`",
        None,
        "test_verify::test_all_agree_and_are_timed",
    ),
    Claim(
        "the other operators' kernels agree with our references", None, "test_verify::test_the_other_operators_agree"
    ),
    Claim(
        "the expert-parallel layer equals a dense one",
        "test_expert_parallel::test_equals_the_dense_layer",
        "test_expert_parallel::test_equals_the_dense_layer_eager_and_compiled",
    ),
    Claim(
        "torchair's declared cases agree with eager PyTorch",
        None,
        "test_conformance::test_as_many_agree_as_were_counted",
    ),
    Claim(
        "the operators of the layer are their documents', and lower to one node",
        "test_family_grouped_matmul::test_rows",
        "test_family_finalize::test_finalize_routing",
    ),
    Claim(
        "one graph serves every token count after the AlltoAll",
        None,
        "test_expert_parallel::test_one_graph_serves_every_token_count",
    ),
    Claim(
        "a public model's prefill runs unchanged",
        None,
        "test_expert_parallel::test_a_prefill_function_of_public_models_runs_unchanged",
    ),
    Claim(
        "a rank that dies is an error of the others",
        "test_expert_parallel::test_a_lost_rank_is_an_error_of_the_others_soon",
        "test_communication::test_a_lost_rank_is_an_error_soon",
    ),
    Claim("torch's operators have the CPU's results", None, "test_operators::test_the_whole_walk"),
    Claim("a transformer trains as on the CPU", None, "test_programs::test_a_transformer_trains_as_on_the_cpu"),
    Claim(
        "DDP, FSDP and fully_shard train as one process on the CPU",
        None,
        "test_communication::test_training_equals_one_process_on_the_cpu",
    ),
    Claim(
        "a Hugging Face MoE model generates the CPU's tokens",
        None,
        "test_programs::test_a_hugging_face_moe_model_generates_the_same_tokens",
    ),
    Claim("200 starts without a crash at exit", None, "test_starts::test_two_hundred_starts"),
    Claim("the C runtime is clean under valgrind", "test_simulator_build::test_the_runtime_under_valgrind"),
    Claim(
        "the C runtime is clean under the address, undefined-behaviour and thread sanitizers",
        "test_simulator_sanitizers::test_the_runtime_is_clean",
    ),
    Claim(
        "random calls of the operator in C: status and rows, under the sanitizers",
        "test_simulator_sanitizers::test_random_calls_of_the_operator_are_clean",
    ),
    Claim("a dump of each kind gives the same summary", "test_dumps_reading::test_every_kind_gives_the_same_summary"),
    Claim("a hostile dump executes nothing", "test_dumps_broken::test_nothing_in_a_py_dump_is_executed"),
    Claim(
        "an edit of a graph is exactly that edit to `diff`", "test_dumps_diff::test_an_edit_of_one_node_is_that_edit"
    ),
    Claim(
        "a page opens 5,000 nodes in under 3 s and 10,000 in under 5 s, in Chromium",
        "test_dumps_pictures_page::test_opens_finds_and_shows",
    ),
    Claim("the wheel installs and works", "test_wheel::test_the_operator_runs_from_the_installed_wheel"),
    Claim("a wrong line in the operator's core fails a test", "test_mutations::test_is_noticed"),
    Claim(
        "attention is float64's to the dtype's rounding: prompts, decoding, paged caches, sparse and latent forms, gradients",
        "test_attention_infer::test_layouts_modes_lengths_rope_and_lse",
        "test_attention_infer::test_latent_attention_of_a_paged_cache",
    ),
    Claim(
        "half types are computed in float32 and rounded once; eager and graph agree bit by bit",
        "test_rounding::test_rounded_once",
        "test_rounding::test_eager_and_graph_agree_bit_by_bit",
    ),
    Claim(
        "what a fake implementation says is what the kernel gives, and torch_npu's own stay in force",
        None,
        "test_fakes::test_every_operator",
    ),
    Claim(
        "a replay of a captured graph is eager's result, bit by bit",
        None,
        "test_capture::test_a_whole_training_step_is_eager_bit_by_bit",
    ),
    Claim(
        "what a capture must not do is an error, and the next capture works",
        None,
        "test_capture::test_what_a_capture_must_not_do_fails_and_the_next_one_works",
    ),
    Claim(
        "collectives in GE graphs give what the ranks hold",
        None,
        "test_graph_collectives::test_each_collective_gives_what_the_ranks_hold",
    ),
    Claim(
        "tensor, expert, data and expert x tensor parallel layers of 2, 3, 4 and 8 ranks: a dense layer's results in every mode, one graph",
        None,
        "test_parallel_layers::test_every_mode_equals_the_dense_layer",
    ),
    Claim(
        "a decoder's logits are transformers' in every mode, on several ranks",
        None,
        "test_moe_model::test_every_mode_on_several_ranks",
    ),
    Claim(
        "ranks that do not call the same collective, come late or die are an error by rank and line, in time",
        None,
        "test_hangs::test_a_slice_of_the_mistakes",
    ),
    Claim(
        "a decoder with experts on several ranks trains as on the CPU, by fused operators and optimizer",
        None,
        "test_train_moe::test_experts_on_several_ranks_train_as_on_the_cpu",
    ),
    Claim(
        "an operator of one's own: a right converter passes every check, changes put into converters are found",
        "test_checking::test_generated_faults_are_found",
        "test_own_operator::test_mutations_of_a_converter_are_found",
    ),
    Claim(
        "the peak memory of a graph planned from shapes is what the allocator is asked for",
        None,
        "test_planning_costs::test_peak_of_a_captured_graph_and_its_edits_is_what_the_allocator_was_asked_for",
    ),
    Claim("GE builds the lowered graph; the kernels of CANN; speed on an NPU"),
)


def exists(folder: str, name: str) -> bool:
    """Is there such a test function at the top of the file? Read from its source, so that no test is imported."""
    file, _, function = name.partition("::")
    path = ROOT / "tests" / folder / f"{file}.py"
    if not path.exists():
        return False
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in ast.parse(path.read_text()).body)


def table() -> str:
    """The table as Markdown."""
    lines = ["| claim | plain CPU | simulated device | hardware |", "|---|---|---|---|"]
    for claim in CLAIMS:
        cells = [f"`{x}`" if x else NOT_VERIFIED for x in (claim.plain, claim.simulated, claim.hardware)]
        lines.append(f"| {claim.text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def between_markers(text: str) -> str | None:
    """What stands between the markers of the page, None if they are missing."""
    return marked.between(text, BEGIN, END)


def written(text: str) -> str:
    """The page with the table between its markers."""
    return marked.written(text, BEGIN, END, table(), PAGE.name)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
