"""What EAT alone does: clones, noise in place of hidden patches, objectives of features and of clips."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from amae_plugin.models.base import summed_losses
from amae_plugin.models.eat import EAT, EATConfig

SIZES = {"input_length": 64, "num_mel_bins": 32, "patch_size": (8, 8), "embed_dim": 32, "depth": 2, "num_heads": 2}
SOURCE = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))
SEED = torch.tensor([1, 2])


def build(**settings: object) -> EAT:
    torch.manual_seed(0)
    return EAT(EATConfig(**{**SIZES, "clones": 3, "decoder_depth": 2, **settings}))  # type: ignore[arg-type]


def random_mask(*shape: int) -> Tensor:
    ranks = torch.rand(shape, generator=torch.Generator().manual_seed(3)).argsort(dim=-1)
    return ranks >= 8


def test_a_clip_under_several_masks_at_once_is_the_clip_under_each() -> None:
    model, mask = build().eval(), random_mask(6, 32)
    together = model(SOURCE, mask)
    for clone in range(6):
        alone = model(SOURCE[clone // 3 :][:1], mask[clone : clone + 1])
        for name in ("prediction", "latent"):
            torch.testing.assert_close(together[name][clone], alone[name][0], rtol=1e-4, atol=1e-5)


def test_a_clip_is_embedded_once_and_seen_by_the_teacher_once() -> None:
    model, embedded = build(), []
    for part in (model.encoder, model.teacher):
        part.patch_embed.register_forward_hook(lambda _, args, result: embedded.append(result.shape))
    model(SOURCE)
    assert embedded == [(2, 32, 32)] * 2


@pytest.mark.parametrize("shape", [(3, 32), (0, 32), (6, 31), (2, 3, 32), (32,)])
def test_masks_that_are_not_those_of_some_clones_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"clones x B, L\).*\(2, 32\), not"):
        build()(SOURCE, torch.ones(shape, dtype=torch.bool))


def test_noise_is_drawn_anew_for_each_clone_from_the_clips_seed() -> None:
    model = build(decoder_noise_std=1.0)
    mask = random_mask(1, 32).expand(6, -1)  # the same for all: only the noise differs
    noisy = model(SOURCE, mask, seed=SEED)["prediction"]
    assert len(noisy[:3].flatten(1).unique(dim=0)) == 3
    assert torch.equal(model(SOURCE, mask, seed=SEED)["prediction"], noisy)
    alone = model(SOURCE[1:], mask[:3], seed=SEED[1:])["prediction"]
    torch.testing.assert_close(alone, noisy[3:], rtol=1e-4, atol=1e-5)
    calm = model.eval()(SOURCE, mask, seed=SEED)["prediction"]
    assert torch.equal(calm[0], calm[1])


def test_the_utterance_loss_is_a_mean_with_its_weight_however_a_batch_is_cut() -> None:
    model = build(utterance_weight=7.0, decoder_noise_std=0.0)
    output = model(SOURCE, seed=SEED)
    losses = model.token_losses(output)
    scored = output["mask"]
    whole = {name: value / scored.sum() for name, value in summed_losses(model, output, scored).items()}
    assert whole["utterance"].item() == pytest.approx(losses["utterance"].mean().item())
    assert whole["frame"].item() == pytest.approx(losses["frame"].sum().item() / scored.sum().item())
    assert whole["loss"].item() == pytest.approx(whole["frame"].item() + 7 * whole["utterance"].item())
    parts = [model(SOURCE[i : i + 1], seed=SEED[i : i + 1]) for i in range(2)]
    sums = [summed_losses(model, part, part["mask"])["loss"] for part in parts]
    assert (sum(sums) / scored.sum()).item() == pytest.approx(whole["loss"].item(), rel=1e-5)


def test_targets_have_no_gradient_and_weights_as_they_were_do_not_follow_the_batch() -> None:
    model = build()
    output = model(SOURCE, seed=SEED)
    assert not output["target"].requires_grad
    alone = model(SOURCE[:1], seed=SEED[:1])["target"]
    torch.testing.assert_close(alone, output["target"][:1], rtol=1e-4, atol=1e-5)


def test_targets_of_a_collapsed_teacher_have_no_variance() -> None:
    model = build()
    assert model(SOURCE)["target_variance"] > 0.1
    with torch.no_grad():
        for block in model.teacher.blocks:
            block.mlp.fc2.weight.zero_()
    assert model(SOURCE)["target_variance"] < 1e-6


@pytest.mark.parametrize(("width", "groups"), [(32, 16), (24, 8), (36, 4)])
def test_convolutions_have_at_most_as_many_groups_as_divide_the_width(width: int, groups: int) -> None:
    assert {block.conv.groups for block in build(embed_dim=width).decoder.blocks} == {groups}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clones": 0}, "model.clones must be at least 1, not 0"),
        ({"decoder_kernel": 4}, "model.decoder_kernel must be odd, not 4"),
        ({"decoder_groups": 0}, "model.decoder_groups must be at least 1, not 0"),
        ({"teacher_decay": (0.5, 1.5)}, "decay of a teacher lies between 0 and 1, not 0.5 to 1.5"),
        ({"teacher_decay_updates": 0}, "changes over 1 update or more, not 0"),
    ],
)
def test_settings_that_make_no_model_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**settings)
