"""torchdata's stateful loader, resumed: python -m examples.torchdata_loop SHARDS/training [STEPS]"""

import pickle
import sys

from torchdata.stateful_dataloader import StatefulDataLoader

from maskshards import CropSettings, Loader, class_map, crop, draw_crops

SETTINGS = CropSettings(crop_px=(128, 128), image_px=128)


def stream(split, workers=2):
    return StatefulDataLoader(Loader(split, batch_per_rank=4, seed=1), batch_size=None, num_workers=workers)


def steps(source, number):
    """The keys of the next batches; what a training would do with each stands in the middle."""
    seen = []
    for batch in source:
        crops = crop(batch, draw_crops(batch, seed=1, settings=SETTINGS), SETTINGS)
        assert class_map(crops).shape == (4, 128, 128)
        seen.append(batch.keys)
        if len(seen) == number:
            return seen


if __name__ == "__main__":
    split, number = sys.argv[1], int([*sys.argv, "20"][2])
    whole, source = steps(stream(split), 2 * number), stream(split)
    first, state = steps(source, number), pickle.dumps(source.state_dict())
    again = stream(split)
    again.load_state_dict(pickle.loads(state))
    assert first + steps(again, number) == whole
    print(f"{number} batches and {number} after a restart: the same {2 * number} as without one")
