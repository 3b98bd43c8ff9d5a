"""The configuration of a run: every key that a recipe or the command line may set.

Names and defaults follow the public DINOv3 segmentation configuration (facebookresearch/dinov3) where it has
them; the keys it lacks (`m2f_train`, `checkpoint`, `log`, `init_from`, ...) are additions. Lists are
`list[...]`: OmegaConf 2.4 refuses tuples declared with one length. Lengths are in pixels, intervals in steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskshards.shards.loading.ordered_map import MOST_THREADS
from maskshards.train.config.data import DatasetConfig, LoaderConfig, TransformConfig
from maskshards.train.config.model import BackboneLayers, DecoderConfig, ModelConfig, ModelDtype
from maskshards.train.config.optimisation import (
    EmaConfig,
    GuardConfig,
    LinearLossConfig,
    OptimizerConfig,
    SchedulerConfig,
)
from maskshards.train.config.results import METRICS, CheckpointConfig, EvalConfig, LogConfig
from maskshards.train.keys import ConfigError, key, nearest, section
from maskshards.train.losses.settings import LossSettings
from maskshards.train.model.backbone.architectures import FP8
from maskshards.train.model.heads.rules import MIXED, PRECISIONS

__all__ = [
    "BackboneLayers",
    "ConfigError",
    "DecoderConfig",
    "GuardConfig",
    "ModelDtype",
    "OptimizerConfig",
    "SchedulerConfig",
    "TrainConfig",
    "nearest",
]


@dataclass
class TrainConfig:
    """One run, whole. `maskshards train` writes it, merged, beside the results."""

    model: ModelConfig = section(ModelConfig, "the frozen backbone")
    bs: int = key(2, "images that a process takes in one micro-step", at_least=1)
    n_gpus: int = key(8, "bs * n_gpus is the global batch of the recipe, on any number of ranks", at_least=1)
    global_batch: int | None = key(None, "images of one optimiser step, said outright", at_least=1)
    num_workers: int = key(6, "reading threads of one process", at_least=1, at_most=MOST_THREADS)
    model_dtype: ModelDtype = key(ModelDtype.FLOAT32, "arithmetic of the model")
    cpu_autocast: bool | None = key(
        None, "model_dtype on a CPU too; null: where the processor has bfloat16 units"
    )
    precision: str = key(
        MIXED,
        "mixed, or the pixel decoder in float32 as facebookresearch/dinov3 computes it",
        one_of=PRECISIONS,
    )
    activation_checkpointing: bool = key(False, "compute activations twice, hold them once")
    compile: str = key("none", "what torch.compile takes in training", one_of=("none", "backbone", "model"))
    compile_mode: str = key(
        "default",
        "of torch.compile; graph: the whole step as CUDA graphs, compiled or not",
        one_of=("default", "reduce-overhead", "max-autotune", "graph"),
    )
    fused_kernels: bool = key(True, "Triton kernels on CUDA; False: plain PyTorch, slower, in more memory")
    step_timeout_s: float = key(
        600.0, "seconds that ranks wait for one of them in a step before all end", above=0, at_most=1e7
    )
    join_timeout_s: float = key(
        180.0, "seconds that ranks wait for all to appear, and again for all to connect", above=0, at_most=1e7
    )
    seed: int = key(100, "of everything random", at_least=0)
    metric_to_save: str = key("mIoU", "by which the best checkpoint is chosen", one_of=tuple(METRICS))
    datasets: DatasetConfig = section(DatasetConfig, "where the shards lie")
    loader: LoaderConfig = section(LoaderConfig, "how samples are read")
    decoder_head: DecoderConfig = section(DecoderConfig, "the trained part")
    scheduler: SchedulerConfig = section(SchedulerConfig, "the learning rate over the run")
    optimizer: OptimizerConfig = section(OptimizerConfig, "AdamW")
    transforms: TransformConfig = section(TransformConfig, "from whole images to what the model sees")
    train: LinearLossConfig = section(LinearLossConfig, "the loss of the linear head")
    m2f_train: LossSettings = section(LossSettings, "the loss of the m2f head")
    eval: EvalConfig = section(EvalConfig, "how the validation split is scored")
    checkpoint: CheckpointConfig = section(CheckpointConfig, "what is kept of a run")
    ema: EmaConfig = section(EmaConfig, "a moving average of the weights")
    log: LogConfig = section(LogConfig, "what a run says meanwhile")
    guards: GuardConfig = section(GuardConfig, "what to do about a step that is not finite")
    output_dir: str | None = key(None, "folder for the run's files")
    load_from: str | None = key(None, "evaluate these weights")
    init_from: str | None = key(None, "train, starting from these weights")
    resume_from: str | None = key(
        None, "continue the run: a checkpoint, or auto for the newest in output_dir"
    )

    @property
    def images_per_step(self) -> int:
        """The global batch: images that one optimiser step sees over all ranks and micro-steps."""
        return self.bs * self.n_gpus if self.global_batch is None else self.global_batch

    def check(self) -> None:
        """ConfigError for top-level keys that contradict each other."""
        words = ("load_from", "init_from", "resume_from")
        given = [word for word in words if getattr(self, word) is not None]
        if "load_from" in given and len(given) > 1:
            raise ConfigError(
                f"{' and '.join(given)} exclude each other: load_from evaluates, the other two train"
            )
        if given == ["init_from", "resume_from"] and self.resume_from != "auto":
            raise ConfigError(
                "init_from starts a run and resume_from continues one; "
                "only resume_from=auto may stand beside init_from"
            )
        if self.model.backbone_precision == FP8 and self.model_dtype is not ModelDtype.BFLOAT16:
            raise ConfigError(
                "model.backbone_precision=fp8 gives bfloat16 features: say model_dtype=BFLOAT16 with it"
            )
        if self.output_dir is None:
            raise ConfigError("output_dir is not set; say output_dir=FOLDER, where the run's files go")
        if self.compile == "none" and self.compile_mode not in ("default", "graph"):
            raise ConfigError(
                f"compile_mode={self.compile_mode} changes nothing with compile=none; "
                "say compile=model (or backbone) too"
            )
