"""The table: steps in columns, other figures in rows, and never more lines than are promised."""

from maskshards.train.bench.gpu_table import MAX_LINES, markdown, printed, short
from maskshards.train.bench.journal import ABSENT, DONE, FAILED, SKIPPED, Result

STEP = {
    "images_per_s": 130.04, "phases_ms": {"wait": 0.1, "loss": 12.34, "step": 123.0}, "peak_gib": 17.21,
    "syncs": 0, "tflop_per_s": 219.8,
}  # fmt: skip


def test_steps_stand_in_one_table_and_the_rest_in_another() -> None:
    text = markdown(
        [
            Result("machine", DONE, 1.0, {"torch": "2.11", "copy_gb_per_s": 4300.0}),
            Result("width 256", DONE, 9.0, {**STEP, "profile": "profile-256.txt"}),
            Result("like the reference", DONE, 9.0, {"TF32": STEP, "ours / TF32": 3.8}),
            Result("nvJPEG", ABSENT, 0.0, reason="no torch|vision"),
        ]
    )
    lines = text.splitlines()
    assert lines[2] == "| width 256 | 130 | 123 | 17.2 | 220 | 0 | wait 0.1, loss 12.3 |"
    assert lines[3].startswith("| like the reference, TF32 | 130 |")
    assert "| machine |  | torch 2.11, copy_gb_per_s 4,300 |" in lines
    assert "| like the reference |  | ours / TF32 3.8 |" in lines
    assert "| nvJPEG | not here | not measured: no torch/vision |" in lines


def test_what_nobody_measured_says_so() -> None:
    text = markdown([Result("width 256", DONE, 1.0, {**STEP, "peak_gib": None, "tflop_per_s": None})])
    assert "| 123 | not measured | not measured | 0 |" in text
    assert "skipped | not measured: no time" in markdown([Result("a", SKIPPED, 0.0, reason="no time")])


def test_at_most_sixty_lines_are_printed() -> None:
    many = [Result(f"part {i}", DONE, 1.0, {"ms": i}) for i in range(100)]
    lines = printed([*many, Result("last", FAILED, 1.0, reason="why")], "out/gpu.jsonl").splitlines()
    assert lines[2] == "| last | failed | not measured: why |"
    assert len(lines) == MAX_LINES
    assert lines[-2:] == ["... and 45 lines more", "all figures: out/gpu.jsonl"]
    assert len(printed(many[:3], "x").splitlines()) == 6


def test_long_figures_are_left_to_the_file() -> None:
    assert short({"ms": 2.0, "table": {"a": 1}}) == "ms 2"
    assert short([]) == "none"
    assert short(list(range(20))) == "20 values"
    assert short(True) == "True"
