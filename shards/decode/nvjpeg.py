"""JPEG decoding on the GPU by nvJPEG, through torchvision, which stays optional.

What the CPU then does for an image is reading and unzipping the runs. nvJPEG's pixels differ a little from
libjpeg-turbo's (it spreads colour to neighbouring pixels in another way), so runs with and without it are not
equal bit for bit. Images that it does not read (PNG, CMYK, damaged files) are decoded on the CPU, which also
words the error.

Hazard: on GPUs with a JPEG engine the decoder may start before earlier work of its stream has ended, and
write into memory that this work still reads. Cure: the host waits for the stream before each call. On the
side stream of DevicePrefetcher that is a wait for copies only, never for the model. Construction runs a
self-test against the CPU decoder while the stream is kept busy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from maskshards.shards.augment.rasterize import image_of, pixel_offsets
from maskshards.shards.batch import EncodedBatch, RaggedBatch
from maskshards.shards.decode.jpeg import decode_image
from maskshards.shards.errors import SampleError

DecodeJpegs = Callable[
    [list[Tensor]], list[Tensor]
]  # flat uint8 files on the host -> (3, H, W) uint8 on the device

SELF_TEST_SIZES = ((96, 128), (64, 64), (200, 120))
SELF_TEST_LEVELS = 3.0  # mean difference allowed; a wrong picture differs by tens


class GpuDecodeError(ValueError):
    """This machine cannot decode JPEG on the GPU, or does it wrongly; decode on the CPU instead."""


class GpuDecoder:
    """Turns an EncodedBatch into a RaggedBatch on `device`, on the current stream.

    Raises GpuDecodeError at construction where torchvision or nvJPEG is missing or fails the self-test.
    `decode_jpegs` replaces the decoder, for tests.
    """

    def __init__(self, device: torch.device | str, decode_jpegs: DecodeJpegs | None = None) -> None:
        self.device = torch.device(device)
        self._decode_jpegs = decode_jpegs or _nvjpeg(self.device)
        self._self_test()

    def __call__(self, batch: EncodedBatch) -> RaggedBatch:
        """Decode; SampleError with the key of an image that neither decoder reads."""
        rest = batch.rest
        num_bytes = 3 * pixel_offsets(rest)[-1]
        pixels = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        decoded = replace(rest.to(self.device), pixels=pixels)
        images = [image_of(decoded, i) for i in range(len(batch))]
        starts, ends = batch.encoded_offsets[:-1], batch.encoded_offsets[1:]
        files = [batch.encoded[start:end] for start, end in zip(starts, ends, strict=True)]
        fit = {
            i for i, name in enumerate(batch.image_formats) if name == "jpg" and _suits(files[i], images[i])
        }
        done = self._decode([files[i] for i in sorted(fit)], [images[i] for i in sorted(fit)])
        for i in sorted(set(range(len(batch))) - (fit if done else set())):
            on_cpu = _decode_on_cpu(files[i], batch.image_formats[i], images[i], rest.keys[i])
            images[i].copy_(on_cpu, non_blocking=True)
        return decoded

    def _decode(self, files: list[Tensor], images: list[Tensor]) -> bool:
        """Decode `files` into `images`; False if there are none, or the decoder refuses one of them.

        Which one it refuses nobody knows then.
        """
        if not files:
            return False
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # the hazard above
        try:
            decoded = self._decode_jpegs(files)
        except RuntimeError:
            return False
        if any(planes.shape[1:] != image.shape[:2] for planes, image in zip(decoded, images, strict=True)):
            return False
        for planes, image in zip(decoded, images, strict=True):
            image.copy_(planes.permute(1, 2, 0))
        return True

    def _self_test(self) -> None:
        """Decode known pictures among other work on the same stream, several times over recycled memory."""
        random = np.random.default_rng(0)
        pictures = []
        for height, width in SELF_TEST_SIZES:
            coarse = random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            pictures.append(np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)))
        files = [simplejpeg.encode_jpeg(picture, quality=95, colorsubsampling="444") for picture in pictures]
        expected = [torch.from_numpy(simplejpeg.decode_jpeg(file, "RGB")) for file in files]
        encoded = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        for _ in range(4):
            work = torch.full((1 << 20,), 7, dtype=torch.uint8, device=self.device)
            images = [
                torch.empty(picture.shape, dtype=torch.uint8, device=self.device) for picture in expected
            ]
            kept = work.sum(dtype=torch.int64)
            del work  # its memory may now go to the decoder
            if not self._decode(encoded, images):
                raise GpuDecodeError(
                    "the GPU's JPEG decoder refuses plain JPEG files; decode on the CPU (decode=cpu)"
                )
            worst = max(
                (image.cpu().float() - picture.float()).abs().mean().item()
                for image, picture in zip(images, expected, strict=True)
            )
            if worst > SELF_TEST_LEVELS or kept.item() != 7 << 20:
                raise GpuDecodeError(
                    f"self-test: the GPU's JPEG decoder is off by {worst:.1f} grey levels in the mean, "
                    f"at most {SELF_TEST_LEVELS} expected, or overwrote memory in use; say decode=cpu"
                )


def _suits(file: Tensor, image: Tensor) -> bool:
    """Whether it is a colour or grey JPEG of the size that the index promises; else the CPU looks at it."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(file.numpy(), strict=False)
    except (ValueError, KeyError):
        return False
    return (height, width) == image.shape[:2] and colours in ("YCbCr", "Gray")


def _decode_on_cpu(file: Tensor, image_format: str, image: Tensor, key: str) -> Tensor:
    out = np.empty(tuple(image.shape), np.uint8)
    try:
        decode_image(file.numpy().tobytes(), image_format, out)
    except SampleError as error:
        raise SampleError(error.what, shard=error.shard, key=error.key or key) from error
    return torch.from_numpy(out)


def _nvjpeg(device: torch.device) -> DecodeJpegs:
    """torchvision's decoder for `device`; GpuDecodeError where there is none."""
    if device.type != "cuda":
        raise GpuDecodeError(
            f"decoding on the GPU needs a CUDA device, found {device}; decode on the CPU (decode=cpu)"
        )
    try:
        io = import_module("torchvision.io")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a build for another torch
        raise GpuDecodeError(
            f"decoding on the GPU needs a torchvision that fits torch {torch.__version__}: {error}. "
            "Run pip install torchvision, or decode on the CPU (decode=cpu)"
        ) from error

    def decode(files: list[Tensor]) -> list[Tensor]:
        return list(io.decode_jpeg(files, mode=io.ImageReadMode.RGB, device=device))

    return decode
