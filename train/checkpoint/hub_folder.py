"""A trained head in the form in which models are shared: config.json, model.safetensors and a model card.

config.json holds what `state.json` of a checkpoint holds, so that `maskshards predict checkpoint=FOLDER` and
`init_from=FOLDER` read it, and the keys by which the Hugging Face hub shows a model. The frozen backbone is
not in the folder: it is the published one, named in config.json and checked by its digest when the folder is
loaded.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub.constants import CONFIG_NAME, REPOCARD_NAME, SAFETENSORS_SINGLE_FILE
from safetensors.torch import save
from torch import Tensor

from maskshards.shards.errors import counted
from maskshards.shards.storage.atomic_write import replacing, write_through
from maskshards.train.checkpoint.checkpoint import TrainState
from maskshards.train.checkpoint.train_state import CHECKSUM, checksum
from maskshards.train.model.heads.rules import HeadRules, head_rules

MODEL_TYPE = "maskshards"
# What a run knew about its own machine, and nobody else's business.
LOCAL_KEYS = ("output_dir", "load_from", "init_from", "resume_from", "loader", "log")

_CARD = """---
library_name: maskshards
pipeline_tag: image-segmentation
tags: [semantic-segmentation{tags}]
---
# {kind} for {backbone}

{kind} on a frozen {backbone} backbone, {classes_counted}, trained{dataset} for {steps}{score}.
The folder holds the trained head only. The backbone's weights come from their own publisher, under their own
licence: say `load_model("FOLDER", weights="PATH")` where you have them already. Their digest must be
`{digest}`.

From an image to class ids, with `pip install maskshards` and this folder as `FOLDER`:

```python
import maskshards

model = maskshards.load_model("FOLDER")  # or the name of this repository
class_map = model.predict("IMAGE")  # (height, width) class ids, model.id2label names them
for segment in model.segments("IMAGE"):
    print(segment["label"], segment["score"])
```

Or pictures for a whole folder: `maskshards predict FOLDER IMAGES --output OUT`.

## Classes

{classes}
"""


def write_folder(folder: Path, state: TrainState, weights: dict[str, Tensor]) -> None:
    """Write the three files into `folder`, which exists, in the place of earlier ones; a card stays."""
    data = save({key: value.detach().cpu().contiguous() for key, value in weights.items()}, {"format": "pt"})
    _put(folder / SAFETENSORS_SINGLE_FILE, data)
    facts = asdict(state) | {
        "config": shareable(state.config),
        "digests": {SAFETENSORS_SINGLE_FILE: hashlib.sha256(data).hexdigest()},
        "model_type": MODEL_TYPE,
        "architectures": [head_of(state).decoder],
        "id2label": {str(k): name for k, name in enumerate(state.class_names)},
        "label2id": {name: k for k, name in enumerate(state.class_names)},
    }
    facts |= {CHECKSUM: checksum(facts)}
    _put(folder / CONFIG_NAME, json.dumps(facts, indent=1, allow_nan=False).encode())
    if not (folder / REPOCARD_NAME).exists():  # people write into it
        _put(folder / REPOCARD_NAME, model_card(state).encode())


def _put(path: Path, data: bytes) -> None:
    with replacing(path) as hidden:
        write_through(hidden, data)


def shareable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without places of the machine that trained: they would mislead, and tell too much.

    Where data lie may be a signed URL, which is a key to them.
    """
    model = dict(config.get("model", {}))
    for key in ("weights", "pretrained_weights"):
        if model.get(key) and model[key] != "random" and is_local(str(model[key])):
            model[key] = None
    kept = {key: value for key, value in config.items() if key not in LOCAL_KEYS}
    return kept | {"model": model, "datasets": {"root": ""}}


def is_local(weights: str) -> bool:
    """Whether `model.weights` names a place on a disk rather than a hub id."""
    return Path(weights).exists() or weights.count("/") != 1 or weights.startswith((".", "~", "/"))


def head_of(state: TrainState) -> HeadRules:
    return head_rules(str(state.config["decoder_head"]["type"]))


def model_card(state: TrainState) -> str:
    """README.md of the folder, with a script that loads it."""
    head = head_of(state)
    metric = state.config.get("metric_to_save", "score")
    return _CARD.format(
        tags="".join(f", {tag}" for tag in (state.backbone.split("_")[0], *head.tags)),
        kind=head.title,
        backbone=state.backbone,
        classes_counted=counted(len(state.class_names), "class"),
        steps=counted(state.step, "step"),
        dataset=f" on {state.dataset}" if state.dataset else "",
        score="" if state.score is None else f": {metric} {state.score:.2f} on the validation split",
        digest=state.backbone_digest,
        classes="\n".join(f"{k}. {name}" for k, name in enumerate(state.class_names)),
    )
