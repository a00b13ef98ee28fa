"""Conditioning of the losses: text, masks, nested arguments, and models of diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctd_engine import schedules
from ctd_engine.likelihood import NoiseClassifier
from ctd_engine.losses import ContrastiveDiffusionLoss, DenoisingLoss

F64 = torch.float64
# the points of the contrastive term are spread evenly over the batch of 6
INDEX = [0, 1, 2, 3, 4, 5] + 2 * [0, 0, 2, 2, 4, 4]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def contrastive(**options: Any) -> ContrastiveDiffusionLoss:
    return ContrastiveDiffusionLoss(schedules.linear_beta(), num_points=3, num_draws=2, **options)


def given(cond: dict[str, Any]) -> dict[str, Any]:
    """What the model is given for a batch of 6."""
    seen: dict[str, Any] = {}

    def model(x: Tensor, t: Tensor, **rows: Any) -> Tensor:
        seen.update(rows)
        return x

    contrastive()(model, torch.randn(6, 2, generator=seeded()), generator=seeded(), **cond)
    return seen


def test_tokens_masks_and_nested_arguments_follow_their_sample() -> None:
    tokens = torch.randn(6, 5, 4, generator=seeded(1))
    mask = torch.rand(6, 5, generator=seeded(2)) < 0.5
    ids = torch.arange(12).view(6, 2)
    rows = given(
        {
            "encoder_hidden_states": tokens,
            "encoder_attention_mask": mask,
            "class_labels": None,
            "added_cond_kwargs": {
                "text_embeds": tokens[:, 0],
                "deep": {"time_ids": ids},
                "n": None,
            },
            "residuals": (tokens, [mask, 3.0]),
            "scale": torch.tensor(2.0),
            "return_dict": False,
        }
    )
    assert torch.equal(rows["encoder_hidden_states"], tokens[INDEX])
    assert torch.equal(rows["encoder_attention_mask"], mask[INDEX])
    assert rows["class_labels"] is None
    added = rows["added_cond_kwargs"]
    assert torch.equal(added["text_embeds"], tokens[INDEX, 0])
    assert torch.equal(added["deep"]["time_ids"], ids[INDEX])
    assert added["n"] is None
    first, (second, third) = rows["residuals"]
    assert torch.equal(first, tokens[INDEX])
    assert torch.equal(second, mask[INDEX])
    assert third == 3.0
    assert rows["scale"].shape == ()
    assert rows["return_dict"] is False


@pytest.mark.parametrize("loss", [DenoisingLoss(schedules.linear_beta()), contrastive()])
def test_rejects_nested_tensors_of_another_length(loss: Any) -> None:
    cond = {"added_cond_kwargs": {"ids": [torch.zeros(6), torch.zeros(1, 3)]}}
    expected = (
        r"added_cond_kwargs\['ids'\]\[1\] must have one entry per sample, .* 6, got .*\(1, 3\)"
    )
    with pytest.raises(ValueError, match=expected):
        loss(lambda x, t, **_: x, torch.zeros(6, 2), generator=seeded(), **cond)


class TextModel(nn.Module):
    """Attention of the sample to its own tokens, with a mask and a pooled embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ask, self.key = (nn.Linear(size, 4, dtype=F64) for size in (4, 3))
        self.value, self.pooled = nn.Linear(3, 4, dtype=F64), nn.Linear(2, 4, dtype=F64)

    def forward(
        self, x: Tensor, t: Tensor, tokens: Tensor, mask: Tensor, added: dict[str, Tensor]
    ) -> Tensor:
        q = self.ask(x + self.pooled(added["pooled"]) + 1e-3 * t[:, None])[:, None]
        attended = nn.functional.scaled_dot_product_attention(
            q, self.key(tokens), self.value(tokens), attn_mask=mask[:, None]
        )
        return x + attended[:, 0]


def text(batch: int) -> dict[str, Any]:
    mask = torch.arange(5)[None] <= torch.arange(batch)[:, None] % 5
    tokens = torch.randn(batch, 5, 3, generator=seeded(1), dtype=F64)
    pooled = torch.randn(batch, 2, generator=seeded(2), dtype=F64)
    return {"tokens": tokens, "mask": mask, "added": {"pooled": pooled}}


def test_text_of_a_sample_decides_its_own_rows_only() -> None:
    model, x = TextModel(), torch.randn(6, 4, generator=seeded(3), dtype=F64)
    loss, cond = contrastive(contrastive_weight=1.0), text(6)
    value = loss(model, x, generator=seeded(4), **cond)
    value.backward()
    assert all(p.grad is not None and bool(p.grad.ne(0).any()) for p in model.parameters())
    # what the mask hides has no effect, in any row
    hidden = cond["tokens"] + 100.0 * (~cond["mask"])[..., None]
    again = loss(model, x, generator=seeded(4), **{**cond, "tokens": hidden})
    torch.testing.assert_close(again, value)
    # sample 1 is no point of the contrastive term: only the other term may change
    parts = dict(loss.last)
    for sample, changes in ((1, {"denoising"}), (2, {"denoising", "contrastive"})):
        tokens = cond["tokens"].clone()
        tokens[sample, 0] += 5.0
        loss(model, x, generator=seeded(4), **{**cond, "tokens": tokens})
        changed = {n for n in ("denoising", "contrastive") if loss.last[n] != parts[n]}
        assert changed == changes


@pytest.mark.parametrize("max_rows", [2, 4, 100])
def test_noise_classifier_gives_a_point_its_own_text(max_rows: int) -> None:
    model, x = TextModel(), torch.randn(3, 4, generator=seeded(3), dtype=F64)
    judge = NoiseClassifier(model, schedules.linear_beta(), num_draws=4, max_rows=max_rows)
    cond = text(3)
    first = judge.log_ratio(x, [0.0, 3.0], generator=seeded(5), **cond).value
    cond["added"]["pooled"][2] += 1.0
    second = judge.log_ratio(x, [0.0, 3.0], generator=seeded(5), **cond).value
    assert (first == second).tolist() == [[True, True], [True, True], [False, False]]


def test_models_of_diffusers_are_told_how_to_be_wrapped() -> None:
    class Output(dict[str, Tensor]):
        pass

    with pytest.raises(TypeError, match=r"must return a tensor, got Output; .*\*\*cond\)\.sample"):
        contrastive()(lambda x, t: Output(sample=x), torch.zeros(6, 2), generator=seeded())


def test_conditional_unet_of_diffusers_trains_on_text() -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=6,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=3 * 4 + 6,
    )
    tokens = torch.randn(6, 5, 6, generator=seeded(1))
    loss = contrastive()

    def value(tokens: Tensor) -> Tensor:
        return loss(
            lambda x, t, **cond: unet(x, t, **cond).sample,
            torch.randn(6, 1, 8, 8, generator=seeded(2)),
            generator=seeded(3),
            encoder_hidden_states=tokens,
            encoder_attention_mask=torch.ones(6, 5, dtype=torch.bool),
            added_cond_kwargs={"text_embeds": tokens[:, 0], "time_ids": torch.ones(6, 3)},
        )

    first = value(tokens)
    first.backward()
    assert all(p.grad is not None for p in unet.parameters())
    assert float(value(tokens.flip(0)).detach()) != float(first.detach())
