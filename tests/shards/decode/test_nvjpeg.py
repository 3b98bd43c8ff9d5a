"""Decoding on the device, with a stand-in decoder on the CPU; the real one under the gpu mark."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from maskshards.shards.augment.rasterize import image_of
from maskshards.shards.batch import EncodedBatch
from maskshards.shards.decode import nvjpeg as gpu_decode
from maskshards.shards.decode.jpeg import decode_image
from maskshards.shards.decode.nvjpeg import GpuDecodeError, GpuDecoder
from maskshards.shards.errors import SampleError


def stand_in(files):
    """What torchvision does: planes, RuntimeError for what it cannot read."""
    decoded = []
    for file in files:
        try:
            pixels = simplejpeg.decode_jpeg(file.numpy(), "RGB")
        except ValueError as error:
            raise RuntimeError("nvJPEG status 2") from error
        decoded.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
    return decoded


def encode(image, name="JPEG", mode="RGB"):
    out = io.BytesIO()
    Image.fromarray(image).convert(mode).save(out, name)
    return out.getvalue()


@pytest.fixture
def encoded(make_batch, random_scenes):
    """(EncodedBatch of a colour, a grey, a CMYK JPEG and a PNG; the files)."""
    images, class_maps = random_scenes(4, 16, 40, 0)
    files = [
        encode(images[0]),
        encode(images[1], mode="L"),
        encode(images[2], mode="CMYK"),
        encode(images[3], "PNG"),
    ]
    return pack(files, ("jpg", "jpg", "jpg", "png"), make_batch(images, class_maps)), files


def pack(files, formats, batch):
    offsets = np.cumsum([0, *map(len, files)]).tolist()
    flat = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
    return EncodedBatch(flat, tuple(offsets), tuple(formats), replace(batch, pixels=batch.pixels[:0]))


def expected_pixels(batch, files):
    for i, file in enumerate(files):
        out = np.empty((batch.rest.heights[i], batch.rest.widths[i], 3), np.uint8)
        decode_image(file, batch.image_formats[i], out)
        yield out


def test_every_kind_of_image_lands_in_its_place(encoded):
    batch, files = encoded
    calls = []
    decoder = GpuDecoder("cpu", lambda these: calls.append(len(these)) or stand_in(these))
    calls.clear()
    decoded = decoder(batch)
    assert calls == [2]  # colour and grey; CMYK and PNG are the CPU's
    for i, pixels in enumerate(expected_pixels(batch, files)):
        np.testing.assert_array_equal(image_of(decoded, i).numpy(), pixels)
    assert torch.equal(decoded.run_ends, batch.rest.run_ends)
    assert decoded.keys == batch.rest.keys


def test_what_the_device_refuses_the_cpu_decodes(encoded):
    batch, files = encoded
    decoder = GpuDecoder("cpu", stand_in)

    def refuse(these):
        raise RuntimeError("nvJPEG status 9")

    decoder._decode_jpegs = refuse
    decoded = decoder(batch)
    for i, pixels in enumerate(expected_pixels(batch, files)):
        np.testing.assert_array_equal(image_of(decoded, i).numpy(), pixels)


def test_a_damaged_image_is_named(encoded):
    batch, files = encoded
    broken = pack([files[0][:60], *files[1:]], batch.image_formats, batch.rest)
    with pytest.raises(SampleError, match="sample_0"):
        GpuDecoder("cpu", stand_in)(broken)


def test_an_image_of_another_size_is_named(encoded):
    batch, files = encoded
    other = encode(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(SampleError, match=r"sample_1.*8x8"):
        GpuDecoder("cpu", stand_in)(pack([files[0], other, *files[2:]], batch.image_formats, batch.rest))


def test_the_self_test_catches_a_decoder_that_is_wrong():
    with pytest.raises(GpuDecodeError, match="self-test"):
        GpuDecoder("cpu", lambda files: [planes.flip(2) for planes in stand_in(files)])
    with pytest.raises(GpuDecodeError, match="refuses"):
        GpuDecoder("cpu", lambda files: [planes[:, :5] for planes in stand_in(files)])


def test_the_stream_is_waited_for_before_the_decoder_starts(monkeypatch):
    order = []
    decoder = GpuDecoder("cpu", lambda files: order.append("decode") or stand_in(files))
    order.clear()
    stream = SimpleNamespace(synchronize=lambda: order.append("wait"))
    monkeypatch.setattr(gpu_decode.torch.cuda, "current_stream", lambda device: stream)
    decoder.device = torch.device("cuda")
    image = np.zeros((8, 16, 3), np.uint8)
    out = torch.ones(8, 16, 3, dtype=torch.uint8)
    assert decoder._decode([torch.frombuffer(bytearray(encode(image)), dtype=torch.uint8)], [out])
    assert order == ["wait", "decode"]
    assert (out == 0).all()


def test_a_cpu_has_no_gpu_decoder():
    with pytest.raises(GpuDecodeError, match="needs a CUDA device, found cpu"):
        GpuDecoder("cpu")


@pytest.mark.gpu
def test_nvjpeg_never_writes_into_memory_in_use(make_batch):
    """The known fault: live tensors overwritten while the device is busy."""
    pytest.importorskip("torchvision", reason="the extra 'gpu-decode' is not installed")
    decoder = GpuDecoder("cuda")
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    batch = pack(
        [encode(image)] * 8, ["jpg"] * 8, make_batch([image] * 8, [np.zeros(image.shape[:2], int)] * 8)
    )
    reference = decoder(batch).pixels.cpu()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(100):
            busy = torch.full_like(reference, 3, device="cuda")
            total = busy.sum(dtype=torch.int64)
            for _ in range(5):
                total = total + busy.sum(dtype=torch.int64)
            del busy
            decoded = decoder(batch)
            assert total.item() == 6 * 3 * reference.numel()
            assert torch.equal(decoded.pixels.cpu(), reference)
