"""A notebook with albumentations: python -m examples.notebook_albumentations SHARDS/training [STEPS]"""

# %% look at the data
import sys

import albumentations as A
import torch
from torch.nn import functional as F

from maskshards import Loader
from maskshards.shards.loading.samples import open_split

split = open_split(sys.argv[1])
print(len(split), "samples;", split[0].key, split[0].image.shape, split[0].labels)


# %% augment, in the threads that read
def transform(image, classes, random):
    steps = [A.PadIfNeeded(96, 96, fill_mask=255), A.RandomCrop(96, 96), A.HorizontalFlip(), A.Normalize()]
    out = A.Compose(steps, seed=int(random.integers(2**32)))(image=image, mask=classes)
    return out["image"], out["mask"]


# %% train; run this cell again to go on where it stopped
loader = Loader(split, batch_per_rank=4, transform=transform, as_dict=True)
model = torch.nn.Conv2d(3, len(split.manifest.classes), 7, padding=3)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step, batch in enumerate(loader, 1):
    loss = F.cross_entropy(model(batch["images"]), batch["class_maps"], ignore_index=loader.ignore_index)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"position {loader.position}  loss {loss.item():.3f}")
    if step == int([*sys.argv, "20"][2]):
        break
