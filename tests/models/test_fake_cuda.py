"""Training steps on a GPU that is none: everything happens on one device, and the CPU never waits for it.

PyTorch's fake tensors have a shape, a type and a device, and no values. So this needs no GPU: an operation on tensors
of two devices fails, and so does everything for which the CPU would have to know a value (``.item()``, ``.tolist()``,
``bool(tensor)``, shapes that depend on data). Only the backward pass needs a driver.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from test_contract import SIZES, VARIANTS, Variant, build
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amae_plugin.fairseq_plugin.classification import LOSSES, AmaeClassification
from amae_plugin.fairseq_plugin.pretraining import AmaeMaskedPrediction
from amae_plugin.models.classifier import Classifier
from amae_plugin.models.classifier.model import POOLINGS
from amae_plugin.models.ctc import CTC
from amae_plugin.models.registry import SYSTEMS
from amae_plugin.modules.masking import MASKINGS

GPU = torch.device("cuda", 0)
TRAINED = {**VARIANTS, "amae_eat mixtures": ("amae_eat", {"mixtures": True})}


class Watch(TorchDispatchMode):
    """Notes the copies between CPU and GPU that the CPU waits for, and the types of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.products: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        given = [value for value in tree_leaves((args, options)) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        devices = {value.device.type for value in (*given, *made)}
        # A number on the CPU, without dimensions, becomes an argument of the GPU's program; copying it does wait.
        moved = "copy" in str(func) or any(value.dim() for value in given if value.device.type == "cpu")
        if devices == {"cpu", "cuda"} and moved and not options.get("non_blocking"):
            self.waits.append(str(func))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.products.add(given[-1].dtype)
        return result


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    """Makes the tensors of the test fake, and its weights as soon as they move."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    yield FakeTensorMode(allow_non_fake_inputs=True)
    for name, module in list(sys.modules.items()):  # nobody else may find fake tensors there
        for value in vars(module).values() if name.startswith("amae_plugin.modules") else ():
            if isinstance(value, functools._lru_cache_wrapper):
                value.cache_clear()
    from amae_plugin.models.audio_mae import decoder

    decoder._route.cache_clear()


def clips(padded: bool) -> dict[str, Tensor | None]:
    """What the model of a training step gets: 4 clips, of which two end early if *padded*."""
    ends = torch.full((4, 1), 64, device=GPU)
    ends[2:].sub_(24)
    padding = torch.arange(64, device=GPU) >= ends
    return {
        "source": torch.randn(4, 64, 32, device=GPU),
        "seed": torch.arange(4, device=GPU),
        "padding_mask": padding if padded else None,
    }


def sample(padded: bool, **others: object) -> dict[str, object]:
    return {"net_input": clips(padded), "nsentences": 4, "ntokens": 256, **others}


def watch(criterion: nn.Module, model: nn.Module, batch: dict[str, object]) -> Watch:
    """A step of training without its backward pass."""
    with Watch() as found:
        loss, _, log = criterion(model, batch)
    assert {value.device for value in (loss, *log.values()) if isinstance(value, Tensor)} == {GPU}
    return found


@pytest.mark.parametrize("variant", TRAINED.values(), ids=TRAINED)
def test_pretraining_never_waits(fake: FakeTensorMode, variant: Variant) -> None:
    model = build(variant).train()
    with fake:
        model = model.to(GPU)
        model(**clips(padded=True))  # the first step may copy tables to the GPU, which stay there
        for score_padding, padded, bf16 in ((True, True, False), (False, False, False), (False, True, True)):
            model.config.bf16 = bf16
            found = watch(AmaeMaskedPrediction(None, score_padding), model, sample(padded))
            assert not found.waits and (torch.bfloat16 in found.products) == bf16
        model.config.bf16 = False
        with torch.autocast("cuda", torch.float16):  # fairseq's common.amp
            found = watch(AmaeMaskedPrediction(None, True), model, sample(padded=True))
        assert not found.waits and torch.float16 in found.products
        with Watch() as following:
            model.after_update(1, 10)
        assert not following.waits


@pytest.mark.parametrize("masking", MASKINGS)
def test_masks_are_drawn_on_the_gpu(fake: FakeTensorMode, masking: str) -> None:
    model = build(("amae_mae_ast", {"depth": 1, "decoder_depth": 1, "masking": masking})).train()
    with fake:
        model = model.to(GPU)
        model(**clips(padded=True))
        for padded in (True, False):
            assert not watch(AmaeMaskedPrediction(None, True), model, sample(padded)).waits


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_classifier_never_waits(fake: FakeTensorMode, name: str) -> None:
    encoder = {**SIZES, "_name": name, "depth": 1}
    for pooling, loss, bf16, padded in zip(POOLINGS, [*LOSSES] * 3, [True, False, False] * 2, [True, False] * 3):
        if pooling in ("cls", "avgcls") and not SYSTEMS[name].encoder(encoder).num_prefix_tokens:
            continue
        shares = {"mask_ratio_time": 0.25, "mask_ratio_frequency": 0.0 if pooling == "time_concat" else 0.25}
        settings = {"encoder": encoder, "num_classes": 3, "pooling": pooling, "drop_path": 0.1, "bf16": bf16, **shares}
        model = Classifier.from_settings(settings).train()
        with fake:
            model = model.to(GPU)
            model(**clips(padded))
            target = torch.rand(4, 3, device=GPU)
            found = watch(AmaeClassification(None, loss, 0.1), model, sample(padded, target=target))
            assert not found.waits and (torch.bfloat16 in found.products) == bf16


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_recogniser_waits_for_the_longest_clip_alone(
    fake: FakeTensorMode, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"encoder": {"_name": name, **SIZES}, "num_units": 7, "input_length": 64, "sub_steps": 2}
    shares = {"mask_ratio_time": 0.5, "mask_ratio_frequency": 0.2, "mask_length": 2, "mask_length_frequency": 2}
    model = CTC.from_settings({**settings, **shares}).train()
    asked = []
    with fake:
        model = model.to(GPU)
        model(**clips(padded=False))
        with Watch() as found:
            assert model(**clips(padded=False))["log_probs"].device == GPU
        assert not found.waits
        with pytest.raises(DataDependentOutputException):
            model(**clips(padded=True))
        monkeypatch.setattr("torch.Tensor.__int__", lambda tensor: asked.append(tensor.shape) or 8)
        model(**clips(padded=True))
        with Watch() as found:
            assert model(**clips(padded=True))["log_probs"].shape == (4, 16, 7)
    assert not found.waits and asked == [(), ()]


def test_what_waits_is_noticed() -> None:
    with FakeTensorMode(), Watch() as found:
        x = torch.randn(3, device=GPU)
        for function in (Tensor.tolist, torch.nonzero, lambda x: bool(x.any()), lambda x: x[x > 0]):
            with pytest.raises(RuntimeError):
                function(x)
        assert not found.waits
        for number, function in enumerate((Tensor.cpu, lambda x: x.new_tensor([0.0]), lambda x: x[torch.arange(2)])):
            function(x)
            assert len(found.waits) == number + 1
        _ = x * torch.tensor(2.0), x.to("cpu", non_blocking=True)
        assert len(found.waits) == 3
        with pytest.raises(RuntimeError):
            _ = x + torch.ones(3)
