"""pipeline.py: parts that were not made for one another are refused, each with what does not fit."""

import copy

import pytest
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from palindiff.inference.pipeline import PalindiffPipeline
from palindiff.models.text_diffusion import text_diffusion_scheduler
from toys.models import toy_images, toy_pipeline, toy_unet


def test_a_query_stream_of_another_unet_is_refused(pipeline):
    whole = pipeline.components | {"requires_safety_checker": False}
    wide = toy_unet(d_c=32, widths=(16, 16))
    with pytest.raises(ValueError, match=r"`site_widths` = \[8, 8, 16\]; this one has \[16, 16, 16\]\. Exp"):
        PalindiffPipeline(**whole | {"unet": wide})
    deep = toy_unet(d_c=32)
    blocks = deep.down_blocks[0].attentions[1].transformer_blocks
    blocks.append(copy.deepcopy(blocks[0]))
    with pytest.raises(ValueError, match=r"`site_num_blocks` = \[1, 1, 1\]; this one has \[1, 2, 1\]\. Expected"):
        PalindiffPipeline(**whole | {"unet": deep})
    other = toy_unet(d_c=32)
    other.mid_block.resnets[-1].out_channels = 24
    with pytest.raises(ValueError, match=r"`mid_channels` = 16; this one has 24\. Expected"):
        PalindiffPipeline(**whole | {"unet": other})


@pytest.mark.parametrize(
    ("encoder", "told"), [("sentence", "queries are embeddings"), ("clip", "`clip_projection` takes features")]
)
def test_a_query_stream_of_another_text_encoder_is_refused(encoder_folder, encoder, told):
    pipeline = toy_pipeline(encoder_folder, encoder)
    other = pipeline.text_encoder.__class__(
        pipeline.text_encoder.config.__class__(hidden_size=16, num_attention_heads=4, num_hidden_layers=1)
    )
    parts = pipeline.components | {"text_encoder": other, "requires_safety_checker": False}
    with pytest.raises(
        ValueError, match=f"{told} of width 32; the text encoder's width is 16. Expected the text encoder"
    ):
        PalindiffPipeline(**parts)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prediction_type": "epsilon"}, "`prediction_type` = 'epsilon'. Expected 'sample'"),
        ({"clip_sample": True}, "`clip_sample` = True. Expected False: a query must not be clipped"),
        ({"thresholding": True}, "`thresholding` = True. Expected False: a query must not be clipped"),
    ],
)
def test_a_query_scheduler_that_is_none_is_refused(pipeline, settings, told):
    scheduler = DDIMScheduler.from_config(text_diffusion_scheduler().config, **settings)
    parts = pipeline.components | {"query_scheduler": scheduler, "requires_safety_checker": False}
    with pytest.raises(ValueError, match=f"The query scheduler has {told}"):
        PalindiffPipeline(**parts)


@pytest.mark.parametrize("kind", [DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_another_deterministic_query_scheduler_serves(pipeline, kind):
    scheduler = kind.from_config(text_diffusion_scheduler().config)
    parts = pipeline.components | {"query_scheduler": scheduler, "requires_safety_checker": False}
    assert PalindiffPipeline(**parts).encode_image(toy_images(), 3).isfinite().all()
