"""clip_adapter.py: the pipeline's own numbers under CLIP's names, and what is neither its images nor its captions."""

import multiprocessing
import pickle
from contextlib import nullcontext

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from torch.utils.data import DataLoader

from palindiff.data.images import ImageFileError
from palindiff.inference.clip_adapter import ClipAdapter, real_tokens
from palindiff.models.text_encoder import tokenize_captions
from palindiff.pretrained.text_encoders import load_text_encoder
from toys.models import toy_images, toy_pipeline
from toys.text_encoders import LENGTH, POSITIONS

CAPTIONS = ["a red apple", "", "fire", "b " * 50]
WALK = {"num_inference_steps": 2, "guidance_scale": 4.0, "seed": 3}


def images_of_every_shape():
    """Images that have to be fitted, and one that has to be laid on white."""
    square, big, wide, see_through = toy_images(4, size_px=24)
    return [square, big.resize((8, 8)), wide.crop((0, 0, 24, 10)), see_through.convert("RGBA")]


def preprocessed(clip, images):
    return torch.stack([clip.preprocess(image) for image in images])


@pytest.fixture(scope="module")
def clip(pipeline):
    return pipeline.as_clip(num_inference_steps=2)


@pytest.mark.parametrize("encoder", ["sentence", "clip"])
@pytest.mark.parametrize("fusion", ["one_way", "joint"])
@pytest.mark.parametrize("text_chain", ["diffusion", "none"])
def test_an_adapter_gives_the_pipeline_s_numbers_to_the_bit(encoder_folder, encoder, fusion, text_chain):
    pipeline, images = (
        toy_pipeline(encoder_folder, encoder, fusion=fusion, text_chain=text_chain),
        images_of_every_shape(),
    )
    clip = pipeline.as_clip(**WALK)
    embedded = clip.encode_image(preprocessed(clip, images))
    assert torch.equal(embedded, pipeline.encode_image(images, **WALK))
    assert (embedded[0] - embedded[1]).abs().max() > 1e-3
    assert torch.equal(clip.encode_text(clip.tokenizer(CAPTIONS)), pipeline.encode_text(CAPTIONS))
    assert torch.equal(clip.encode_text(clip.tokenizer("fire")), pipeline.encode_text(["fire"]))


def test_images_and_captions_are_taken_as_many_at_a_time_as_the_pipeline_does(pipeline, monkeypatch):
    images, clip = toy_images(5), pipeline.as_clip(**WALK, batch_size=2)
    assert torch.equal(
        clip.encode_image(preprocessed(clip, images)), pipeline.encode_image(images, **WALK | {"batch_size": 2})
    )
    monkeypatch.setattr("palindiff.inference.pipeline.CAPTIONS_AT_ONCE", 3)
    assert torch.equal(clip.encode_text(clip.tokenizer(CAPTIONS)), pipeline.encode_text(CAPTIONS))


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
def test_neither_batch_nor_order_changes_an_embedding(encoder_folder, fusion):
    clip = toy_pipeline(encoder_folder, fusion=fusion).as_clip(num_inference_steps=3)
    order = [3, 1, 4, 0, 2]
    for encode, batch in (
        (clip.encode_image, preprocessed(clip, toy_images(5))),
        (clip.encode_text, clip.tokenizer([*CAPTIONS, "red"])),
    ):
        together = encode(batch)
        alone = torch.cat([encode(each[None]) for each in batch])
        assert (alone - together).abs().max() <= 1e-5  # products of another size may sum in another order
        assert (encode(batch[order]) - together[order]).abs().max() <= 1e-5


def test_a_fit_reaches_the_preprocess(pipeline):
    wide = toy_images(1, size_px=24)[0].crop((0, 0, 24, 10))
    crop, pad = (pipeline.as_clip(fit=fit) for fit in ("crop", "pad"))
    assert (crop.preprocess(wide) - pad.preprocess(wide)).abs().max() > 0.1
    assert torch.equal(pad.encode_image(pad.preprocess(wide)[None]), pipeline.encode_image([wide], fit="pad"))


@pytest.mark.parametrize("kappa", [7.5, 99.0])
def test_logit_scale_is_the_log_of_kappa(encoder_folder, kappa):
    pipeline = toy_pipeline(encoder_folder, logit_scale=kappa)
    clip = pipeline.as_clip()
    assert torch.equal(clip.logit_scale.exp(), pipeline.query_stream.logit_scale)
    assert clip.logit_scale.exp().item() == pytest.approx(kappa, rel=1e-6)  # float32
    with torch.no_grad():
        pipeline.query_stream.log_logit_scale += 1  # past the bound of 100 in one of the two
    assert torch.equal(clip.logit_scale.exp(), pipeline.query_stream.logit_scale)
    assert not clip.logit_scale.requires_grad


def test_a_call_gives_features_of_what_is_given_and_kappa(clip):
    image, text = preprocessed(clip, toy_images(2)), clip.tokenizer(CAPTIONS)
    image_features, text_features, scale = clip(image, text)
    assert torch.equal(image_features, clip.encode_image(image))
    assert torch.equal(text_features, clip.encode_text(text))
    assert torch.equal(scale, clip.logit_scale.exp())
    assert clip(image=image)[1] is None
    assert clip(text=text)[0] is None


def test_embeddings_have_unit_length_normalized_or_not_and_no_gradient(clip):
    for encode, batch in (
        (clip.encode_image, preprocessed(clip, toy_images(2)).requires_grad_()),
        (clip.encode_text, clip.tokenizer(CAPTIONS)),
    ):
        embedded = encode(batch)
        assert embedded.norm(dim=-1).tolist() == pytest.approx([1.0] * len(batch), abs=1e-6)  # float32
        assert torch.equal(encode(batch, normalize=True), embedded)
        assert not embedded.requires_grad
        with torch.inference_mode():
            assert torch.equal(encode(batch), embedded)


def test_mixed_precision_changes_an_embedding_by_rounding_alone(clip):
    image, text = preprocessed(clip, toy_images()), clip.tokenizer(CAPTIONS)
    expected = clip(image, text)
    with torch.autocast("cpu"):
        found = clip(image, text)
    for e_hat, e in zip(found[:2], expected[:2], strict=True):
        assert e_hat.dtype == torch.float32
        assert (e_hat * e).sum(dim=-1).min() > 0.99  # bf16 has 8 bits


def test_preprocess_gives_one_image_in_minus_1_to_1(clip, tmp_path):
    image = toy_images(1, size_px=16)[0]
    image.save(tmp_path / "a.png")
    x = clip.preprocess(image)
    assert (x.shape, x.dtype) == ((3, 8, 8), torch.float32)
    assert -1 <= x.min() < -0.5 < 0.5 < x.max() <= 1
    assert torch.equal(clip.preprocess(tmp_path / "a.png"), x)
    with pytest.raises(ImageFileError, match=r"none\.png` does not exist"):
        clip.preprocess(tmp_path / "none.png")


def test_preprocess_works_in_the_spawned_workers_of_a_data_loader(clip):
    images = toy_images()
    loader = DataLoader(
        images, batch_size=None, collate_fn=clip.preprocess, num_workers=1,
        multiprocessing_context=multiprocessing.get_context("spawn"),
    )  # fmt: skip
    assert torch.equal(torch.stack(list(loader)), preprocessed(clip, images))


def test_a_tokenizer_is_pickled_without_its_text_encoder(clip):
    pickled = pickle.dumps(clip.tokenizer)
    assert b"BertModel" not in pickled
    assert torch.equal(pickle.loads(pickled)(CAPTIONS), clip.tokenizer(CAPTIONS))


def test_a_tokenizer_pads_and_cuts_to_one_length(clip):
    ids = clip.tokenizer(CAPTIONS)
    assert (ids.shape, ids.dtype) == ((len(CAPTIONS), LENGTH), torch.int64)
    assert torch.equal(clip.tokenizer(tuple(CAPTIONS)), ids)
    assert torch.equal(clip.tokenizer(CAPTIONS[0]), ids[:1])
    with pytest.raises(TypeError, match=r"`captions\[1\]` is a `NoneType`"):
        clip.tokenizer(["red", None])


@pytest.mark.parametrize("encoder", ["sentence", "clip", "clip_2"])
def test_tokens_are_distinguished_from_padding_by_their_ids(encoder_folder, encoder):
    """The three pad with a token of their own, with the end token, and with a token that captions have too."""
    tokenizer = load_text_encoder(str(encoder_folder / encoder)).tokenizer
    padding = tokenizer.pad_token if encoder != "clip" else "c"
    ids, mask = map(
        torch.tensor, tokenize_captions([*CAPTIONS, f"a {padding} b", f"a {padding} {padding}"], tokenizer)
    )
    assert torch.equal(real_tokens(ids, tokenizer), mask.bool())
    assert {2, LENGTH} <= set(mask.sum(dim=1).tolist())


@pytest.mark.parametrize("length", [6, POSITIONS])
@pytest.mark.parametrize("encoder", ["sentence", "clip"])
def test_ids_may_be_padded_to_another_length_and_be_int32(encoder_folder, encoder, length):
    pipeline = toy_pipeline(encoder_folder, encoder)
    clip, captions = pipeline.as_clip(), ["a red", ""]
    ids = pipeline.tokenizer(captions, padding="max_length", max_length=length, return_tensors="pt").input_ids
    e = clip.encode_text(ids.int())
    assert (e - pipeline.encode_text(captions)).abs().max() <= 1e-5  # attention sums over more or fewer zeros


def test_parts_are_the_pipeline_s_own(encoder_folder):
    pipeline = toy_pipeline(encoder_folder)
    clip, images = pipeline.as_clip(num_inference_steps=2), toy_images()
    assert not clip.training
    assert clip.device == torch.device("cpu")
    assert clip.to(torch.bfloat16) is clip
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.query_stream, pipeline.text_encoder)} == {
        torch.bfloat16
    }
    embedded = clip.encode_image(preprocessed(clip, images).bfloat16())
    assert embedded.dtype == torch.float32
    assert torch.equal(embedded, pipeline.encode_image(images, 2))
    assert clip.train().training
    assert pipeline.unet.training
    assert pipeline.as_clip().training
    assert not any(part.training for part in clip.eval().modules())


def offload(pipeline, device):
    """Hook every part as `enable_model_cpu_offload()` does."""
    for name in ("text_encoder", "vae", "unet", "query_stream"):
        cpu_offload_with_hook(getattr(pipeline, name), torch.device(device))
    return pipeline


@pytest.mark.parametrize("fusion", ["one_way", "joint"])
def test_offloaded_parts_are_brought_before_they_are_used(encoder_folder, monkeypatch, fusion):
    images = toy_images()
    plain = toy_pipeline(encoder_folder, fusion=fusion, text_chain="none").as_clip()
    clip = offload(toy_pipeline(encoder_folder, fusion=fusion, text_chain="none"), "cpu").as_clip()
    image, text = preprocessed(clip, images), clip.tokenizer(CAPTIONS)
    assert torch.equal(clip.encode_image(image), plain.encode_image(image))
    assert torch.equal(clip.encode_text(text), plain.encode_text(text))
    monkeypatch.setattr(torch, "autocast", lambda *device, **options: nullcontext())  # which knows no device `meta`
    elsewhere = offload(toy_pipeline(encoder_folder, "clip", fusion=fusion, text_chain="none"), "meta").as_clip()
    assert elsewhere.device.type == "meta"
    assert elsewhere.encode_image(image).device.type == "meta"
    assert elsewhere.encode_text(elsewhere.tokenizer("red")).device.type == "meta"


def test_parts_offloaded_weight_by_weight_are_refused(encoder_folder):
    for name, encode in (("text_encoder", "encode_text"), ("vae", "encode_image")):
        pipeline = toy_pipeline(encoder_folder)
        clip = pipeline.as_clip()
        given = clip.tokenizer("red") if name == "text_encoder" else preprocessed(clip, toy_images(1))
        cpu_offload(getattr(pipeline, name), torch.device("cpu"))
        with pytest.raises(ValueError, match=rf"`{name}` are on the device `meta`.*enable_model_cpu_offload"):
            getattr(clip, encode)(given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_an_adapter_moves_to_an_accelerator(encoder_folder):
    clip, images = toy_pipeline(encoder_folder).as_clip(), toy_images()
    image, text = preprocessed(clip, images), clip.tokenizer(CAPTIONS)
    expected = clip(image, text)
    for batch in ((image, text), (image.cuda(), text.cuda())):
        found = clip.to("cuda")(*batch)
        assert clip.device.type == "cuda"
        for each, on_cpu in zip(found, expected, strict=True):
            assert each.is_cuda
            assert (each.cpu() - on_cpu).abs().max() <= 1e-3  # another device rounds otherwise


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda x: (x + 1) * 127.5, ValueError, r"ranges from .* to 25\d.*Expected pixels in \[-1, 1\], not 0 to 255"),
        (lambda x: 2.6 * x, ValueError, r"ranges from -2\.\d.*nor another CLIP's normalisation"),
        (lambda x: x * float("nan"), ValueError, r"ranges from nan to nan.*Use this model's own `preprocess`"),
        (lambda x: x[0], ValueError, r"shape \(3, 8, 8\).*Expected \(b, 3, 8, 8\).* pass `image\[None\]`"),
        (lambda x: x[..., :7], ValueError, r"shape \(3, 3, 8, 7\).*Expected \(b, 3, 8, 8\)"),
        (lambda x: x[:, :1], ValueError, r"shape \(3, 1, 8, 8\)"),
        (lambda x: x[:0], ValueError, r"shape \(0, 3, 8, 8\)"),
        (lambda x: x.to(torch.uint8), TypeError, r"`image` is torch\.uint8 in `encode_image`. Expected a floating"),
        (lambda x: list(x), TypeError, r"`image` is a `list` in `encode_image`. Expected a floating-point tensor"),
    ],
)
def test_what_preprocess_never_makes_is_refused(clip, change, error, sentence):
    with pytest.raises(error, match=sentence):
        clip.encode_image(change(preprocessed(clip, toy_images())))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda ids: ids.float(), TypeError, r"`text` is torch\.float32 in `encode_text`. Expected int64 token ids"),
        (lambda ids: CAPTIONS, TypeError, r"`text` is a `list` in `encode_text`.*Pass `tokenizer\(captions\)`"),
        (lambda ids: ids[0], ValueError, r"shape \(12,\) in `encode_text`. Expected \(b, l\), one row of ids"),
        (lambda ids: ids[:0], ValueError, r"shape \(0, 12\)"),
        (lambda ids: ids.repeat(1, 2), ValueError, r"shape \(4, 24\).*l at most 16, the text encoder's positions"),
        (lambda ids: ids + 49_000, ValueError, r"ids from 49\d+ to 49\d+.*Expected 0 to \d\d, the vocabulary"),
        (lambda ids: ids - 1, ValueError, r"ids from -1 to .*Use this model's own `tokenizer`"),
        (lambda ids: ids * 0, ValueError, r"A caption became no token at all"),
    ],
)  # fmt: skip
def test_what_the_tokenizer_never_makes_is_refused(clip, change, error, sentence):
    with pytest.raises(error, match=sentence):
        clip.encode_text(change(clip.tokenizer(CAPTIONS)))


def test_ids_of_clip_without_an_end_are_refused(encoder_folder):
    clip = toy_pipeline(encoder_folder, "clip").as_clip()
    with pytest.raises(ValueError, match="The token that CLIP pools is not the tokenizer's end token"):
        clip.encode_text(clip.tokenizer("a b c")[:, :3])


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` is 0"),
        ({"guidance_scale": 0.5}, ValueError, "`guidance_scale` is 0.5"),
        ({"seed": 0.5}, TypeError, "`seed` is 0.5"),
        ({"batch_size": 0}, ValueError, "`batch_size` is 0"),
        ({"fit": "squeeze"}, ValueError, "`fit` is 'squeeze'"),
        ({"steps": 8}, TypeError, "unexpected keyword argument 'steps'"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(pipeline, options, error, sentence):
    with pytest.raises(error, match=sentence):
        pipeline.as_clip(**options)


def test_a_pipeline_that_cannot_be_adapted_is_refused(encoder_folder):
    pipeline = toy_pipeline(encoder_folder)
    pipeline.tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match=r"pads on the left with `\[PAD\]`.*Expected padding on the right"):
        ClipAdapter(pipeline)
    pipeline.tokenizer.padding_side = "right"
    pipeline.tokenizer.model_max_length = POSITIONS + 1
    with pytest.raises(ValueError, match="Expected at most 16, the text encoder's positions"):
        ClipAdapter(pipeline)
    pipeline.tokenizer.model_max_length = LENGTH
    pipeline.unet.register_to_config(sample_size=(4, 8))
    with pytest.raises(ValueError, match=r"`sample_size` is \(4, 8\)\. Expected one side"):
        ClipAdapter(pipeline)
