import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from amae_plugin.modules.masking import (
    MASKINGS,
    ChunkMasking,
    ClipNoise,
    FrequencyMasking,
    InverseBlockMasking,
    RandomBatchedMasking,
    RandomMasking,
    SpanMasking,
    TimeFrequencyMasking,
    TimeMasking,
    build_masking,
    cloned_noise,
    random_spans,
    seeded_noise,
    seeded_normal,
    take_tokens,
    visible_ids,
)

sides = st.integers(1, 40)
grids = st.tuples(sides, sides)
ratios = st.floats(0, 0.999)
seeds = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5)
strategies = st.one_of(
    st.builds(RandomMasking, ratios),
    st.builds(RandomBatchedMasking, ratios),
    st.builds(ChunkMasking, ratios),
    st.builds(SpanMasking, ratios, st.integers(1, 20)),
    st.builds(InverseBlockMasking, ratios, st.integers(1, 7)),
    st.builds(TimeMasking, ratios),
    st.builds(FrequencyMasking, ratios),
    st.builds(TimeFrequencyMasking, ratios, ratios),
)
FOUR = [RandomMasking(0.8), TimeMasking(0.8), FrequencyMasking(0.8), TimeFrequencyMasking(0.6, 0.5)]
BY_CLIP = [*FOUR, ChunkMasking(0.75), SpanMasking(0.75, 10), InverseBlockMasking(0.8)]


def clip_noise(seeds):
    return ClipNoise(torch.tensor(seeds))


def kept(length, ratio):
    return max(1, int(length * (1 - ratio)))


@given(strategy=strategies, grid=grids, seeds=seeds)
def test_every_clip_has_exactly_the_promised_number_of_visible_tokens(strategy, grid, seeds):
    mask = strategy(clip_noise(seeds), grid)
    assert mask.shape == (len(seeds), grid[0] * grid[1])
    assert mask.dtype == torch.bool
    assert ((~mask).sum(1) == strategy.num_visible(grid)).all()


@given(strategy=strategies, grid=grids, seeds=seeds)
def test_visible_ids_are_the_visible_tokens_in_order_and_none_twice(strategy, grid, seeds):
    mask = strategy(clip_noise(seeds), grid)
    for ids in (visible_ids(mask), visible_ids(mask, strategy.num_visible(grid))):
        for row, clip in zip(ids, mask):
            assert row.tolist() == (~clip).nonzero().flatten().tolist()


@given(grid=grids, ratio=ratios, seeds=seeds)
def test_time_masking_hides_whole_time_steps(grid, ratio, seeds):
    mask = TimeMasking(ratio)(clip_noise(seeds), grid).view(-1, *grid)
    assert torch.equal(mask, mask[:, :, :1].expand_as(mask))
    assert ((~mask[:, :, 0]).sum(1) == kept(grid[0], ratio)).all()


@given(grid=grids, ratio=ratios, seeds=seeds)
def test_frequency_masking_hides_whole_bands(grid, ratio, seeds):
    mask = FrequencyMasking(ratio)(clip_noise(seeds), grid).view(-1, *grid)
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert ((~mask[:, 0]).sum(1) == kept(grid[1], ratio)).all()


@given(grid=grids, time=ratios, frequency=ratios, seeds=seeds)
def test_time_frequency_masking_leaves_whole_rows_of_whole_columns(grid, time, frequency, seeds):
    visible = ~TimeFrequencyMasking(time, frequency)(clip_noise(seeds), grid).view(-1, *grid)
    rows, columns = visible.any(2), visible.any(1)
    assert torch.equal(visible, rows[:, :, None] & columns[:, None, :])
    assert (rows.sum(1) == kept(grid[0], time)).all()
    assert (columns.sum(1) == kept(grid[1], frequency)).all()


def test_audio_mae_numbers():
    grid = (64, 8)
    assert [strategy.num_visible(grid) for strategy in FOUR] == [102, 96, 64, 100]


@given(
    strategy=st.sampled_from(BY_CLIP),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=6, unique=True),
    data=st.data(),
)
def test_a_clip_has_the_same_mask_in_any_batch_and_any_order(strategy, seeds, data):
    grid = (16, 8)
    alone = {seed: strategy(clip_noise([seed]), grid)[0] for seed in seeds}
    for seed, mask in zip(seeds, strategy(clip_noise(seeds), grid)):
        assert torch.equal(mask, alone[seed])
    shuffled = data.draw(st.permutations(seeds))
    for seed, mask in zip(shuffled, strategy(clip_noise(shuffled), grid)):
        assert torch.equal(mask, alone[seed])


def test_masks_of_known_seeds_never_change():
    mask = RandomMasking(0.5)(clip_noise([0, 1, 2**63 - 1]), (2, 4))
    assert visible_ids(mask).tolist() == [[2, 4, 5, 6], [1, 2, 4, 7], [2, 3, 6, 7]]


@pytest.mark.parametrize(
    ("strategy", "hidden"),
    [
        (ChunkMasking(0.4), [11, 13, 14, 15, 16, 17, 18, 19]),
        (SpanMasking(0.4, 3), [0, 1, 2, 3, 14, 15, 16, 17]),
        (TimeMasking(0.5), [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]),
        (FrequencyMasking(0.5), [2, 3, 6, 7, 10, 11, 14, 15, 18, 19]),
        (TimeFrequencyMasking(0.5, 0.3), [0, 1, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]),
        (RandomBatchedMasking(0.3), [2, 4, 5, 6, 10, 17]),
        (InverseBlockMasking(0.5, 3), [0, 1, 2, 3, 4, 8, 12, 17, 18, 19]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_strategys_masks_of_a_known_seed_ever_change(strategy, hidden):
    assert strategy(clip_noise([5]), (5, 4))[0].nonzero().flatten().tolist() == hidden


def test_the_global_seed_decides_where_clips_have_none():
    noise = seeded_noise(torch.empty(3), None)
    torch.manual_seed(4)
    mask = RandomMasking(0.5)(noise, (8, 4))
    assert not torch.equal(RandomMasking(0.5)(noise, (8, 4)), mask)
    torch.manual_seed(4)
    assert torch.equal(RandomMasking(0.5)(noise, (8, 4)), mask)


@pytest.mark.parametrize(
    "strategy", [*BY_CLIP, RandomBatchedMasking(0.75)], ids=lambda strategy: type(strategy).__name__
)
def test_masks_are_made_where_the_noise_is_without_looking_at_it(strategy):
    # A tensor of the meta device has no values: to read one, or to mix it with one of the CPU, is an error.
    noise = seeded_noise(torch.empty(2, device="meta"), None)
    padding = torch.empty(2, 128, dtype=torch.bool, device="meta")
    for padding_mask in (None, padding):
        mask = strategy(noise, (16, 8), padding_mask)
        assert mask.device.type == "meta"
        assert mask.shape == (2, 128)
    assert visible_ids(mask, strategy.num_visible((16, 8))).shape == (2, strategy.num_visible((16, 8)))


@pytest.mark.parametrize("strategy", BY_CLIP, ids=lambda strategy: type(strategy).__name__)
def test_neighbouring_seeds_have_unrelated_masks(strategy):
    mask = strategy(clip_noise(range(2000)), (64, 8)).float()
    overlap = (mask[:-1] * mask[1:]).mean()
    assert overlap.item() == pytest.approx(mask.mean().item() ** 2, abs=0.01)


def chi_square(counts, expected):
    return ((counts - expected).square() / expected).sum().item()


@pytest.mark.parametrize("noise", [ClipNoise(torch.arange(5000)), seeded_noise(torch.empty(5000), None)])
def test_every_token_is_hidden_equally_often(noise):
    torch.manual_seed(0)
    tokens, ratio = 32, 0.75
    mask = RandomMasking(ratio)(noise, (8, 4))
    # Sampling without replacement has less variance than independent draws: by (1 - 1/L) of the hypergeometric law.
    variance_per_clip = ratio * (1 - ratio)
    deviation = mask.sum(0).double() - 5000 * ratio
    statistic = (deviation.square() / (5000 * variance_per_clip)).sum().item() * (tokens - 1) / tokens
    assert 9.0 < statistic < 65.2  # 0.01% and 99.98% points of chi-square with 31 degrees of freedom


@pytest.mark.parametrize("strategy", [TimeMasking(0.75), FrequencyMasking(0.75)], ids=["time", "frequency"])
def test_every_time_step_and_every_band_is_hidden_equally_often(strategy):
    clips, lines = 5000, 16
    mask = strategy(ClipNoise(torch.arange(clips)), (lines, lines)).view(clips, lines, lines)
    lines_hidden = mask.any(2) if isinstance(strategy, TimeMasking) else mask.any(1)
    deviation = lines_hidden.sum(0).double() - 0.75 * clips
    statistic = (deviation.square() / (clips * 0.75 * 0.25)).sum().item() * (lines - 1) / lines
    assert 2.5 < statistic < 44.3  # 0.01% and 99.99% points of chi-square with 15 degrees of freedom


def test_a_shared_mask_hides_every_token_equally_often():
    masks = [RandomBatchedMasking(0.75)(clip_noise([seed, 0]), (8, 4))[1] for seed in range(2000)]
    deviation = torch.stack(masks).sum(0).double() - 0.75 * 2000
    assert 9.0 < (deviation.square() / (2000 * 0.75 * 0.25)).sum().item() * 31 / 32 < 65.2  # as above


def test_the_sides_of_chunks_are_equally_frequent():
    # With one square's worth of tokens to hide at most, the first chunk is all there is, uncut if it is inside.
    mask = ChunkMasking(1 - (1600 - 9) / 1600)(ClipNoise(torch.arange(3000)), (40, 40)).view(-1, 40, 40)
    rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
    assert (mask.sum((1, 2)) == 9).all()
    # Nine tokens from the end of a square of 3, 4 or 5: 3 rows of 3; 3 rows, 4 wide; 2 rows, 5 wide.
    inside = ~mask[:, 0].any(1) & ~mask[:, :, 0].any(1) & ~mask[:, -1].any(1) & ~mask[:, :, -1].any(1)
    counts = torch.tensor([((rows == r) & (columns == c) & inside).sum() for r, c in ((3, 3), (3, 4), (2, 5))])
    assert counts.sum() == inside.sum()
    assert chi_square(counts.double(), inside.sum() / 3) < 18.4  # 99.99% point of 2 degrees of freedom


def test_every_pair_of_tokens_is_visible_together_equally_often():
    clips, tokens, visible = 20_000, 8, 3
    mask = RandomMasking(1 - (visible + 0.5) / tokens)(ClipNoise(torch.arange(clips)), (4, 2))
    together = ((~mask).double().T @ (~mask).double())[tuple(torch.triu_indices(tokens, tokens, 1))]
    expected = clips * visible * (visible - 1) / (tokens * (tokens - 1))
    assert len(together) == 28
    assert chi_square(together, expected) < 62  # well beyond the 99.9% point of 27 degrees of freedom


def test_noise_is_uniform_and_never_repeats():
    noise = ClipNoise(torch.arange(100))
    first, second = noise(1000), noise(1000)
    assert not torch.equal(first, second)
    values = torch.cat([first, second])
    assert values.min() >= 0
    assert values.max() < 1
    counts = torch.histc(values, 100, 0, 1).double()
    assert 54 < chi_square(counts, values.numel() / 100) < 161  # 0.01% and 99.99% points of 99 degrees of freedom


def test_two_draws_are_one_longer_draw():
    once, twice = clip_noise([7]), clip_noise([7])
    assert torch.equal(once(30), torch.cat([twice(10), twice(20)], dim=1))


def test_masks_with_different_numbers_of_visible_tokens_are_refused():
    mask = torch.tensor([[True, False, False], [True, True, False]])
    with pytest.raises(ValueError, match=r"same number of tokens visible; these leave \[2, 1\]"):
        visible_ids(mask)


@pytest.mark.parametrize("name", MASKINGS)
def test_strategies_are_chosen_by_name(name):
    strategy = build_masking(name, {"mask_ratio": 0.5, "mask_ratio_time": 0.25, "mask_ratio_frequency": 0.75})
    assert strategy.num_visible((8, 8)) == {"time_frequency": 12}.get(name, 32)


def test_unknown_names_and_impossible_ratios_are_refused():
    with pytest.raises(ValueError, match=r"'checkerboard'; there are: random, .*time_frequency.*, chunk, span"):
        build_masking("checkerboard", {})
    for ratio in (-0.1, 1.0, float("nan")):
        for build in (
            RandomMasking,
            ChunkMasking,
            lambda r: SpanMasking(r, 10),
            TimeMasking,
            FrequencyMasking,
            lambda r: TimeFrequencyMasking(0.5, r),
        ):
            with pytest.raises(ValueError, match="at least 0 and below 1, not"):
                build(ratio)
    with pytest.raises(ValueError, match="masking chunk has no side; its parameters are mask_ratio, sides"):
        build_masking("chunk", {"side": 3}, {"side": 3})
    with pytest.raises(ValueError, match=r"1 token or more, not \(\)"):
        build_masking("chunk", {}, {"sides": ()})
    with pytest.raises(ValueError, match="at least 1 token long, not 0"):
        build_masking("span", {"mask_length": 0})
    with pytest.raises(ValueError, match="side of a visible block is 1 token or more, not 0"):
        build_masking("inverse_block", {}, {"side": 0})
    with pytest.raises(ValueError, match="surplus of visible blocks must be at least 0, not -1"):
        build_masking("inverse_block", {}, {"surplus": -1})


def one_after_the_other(pieces, wanted):
    """Hide pieces of tokens in their order; of the last one only the last tokens that are still wanted."""
    hidden = set()
    for piece in pieces:
        missing = wanted - len(hidden)
        if missing <= 0:
            break
        hidden.update(sorted(piece - hidden)[-missing:])
    return sorted(hidden)


@given(grid=grids, ratio=ratios, seed=st.integers(0, 2**63 - 1))
def test_chunks_are_squares_one_after_the_other_cut_by_the_edges(grid, ratio, seed):
    noise = clip_noise([seed])
    side = 3 + int(noise(1).item() * 3)
    ranks = noise((grid[0] + 4) * (grid[1] + 4)).view(grid[0] + 4, grid[1] + 4)
    assume(ranks.unique().numel() == ranks.numel())
    squares = []
    for start in ranks.flatten().argsort().tolist():
        row, column = start // (grid[1] + 4) - 4, start % (grid[1] + 4) - 4
        rows, columns = (range(max(0, first), min(first + side, end)) for first, end in zip((row, column), grid))
        squares.append({r * grid[1] + c for r in rows for c in columns})
    wanted = grid[0] * grid[1] - kept(grid[0] * grid[1], ratio)
    mask = ChunkMasking(ratio)(clip_noise([seed]), grid)
    assert mask[0].nonzero().flatten().tolist() == one_after_the_other(squares, wanted)


def test_chunks_hide_every_token_about_equally_often():
    often = ChunkMasking(0.75)(ClipNoise(torch.arange(6000)), (64, 8)).double().mean(0)
    assert often.mean().item() == pytest.approx(0.75)
    assert often.min() > 0.70
    assert often.max() < 0.80


@given(tokens=st.integers(1, 200), length=st.integers(1, 20), ratio=ratios, seed=st.integers(0, 2**63 - 1))
def test_spans_lie_inside_the_clip_one_after_the_other(tokens, length, ratio, seed):
    ranks = clip_noise([seed])(tokens)[0, : max(1, tokens - length + 1)]
    assume(ranks.unique().numel() == ranks.numel())
    spans = [set(range(start, min(start + length, tokens))) for start in ranks.argsort().tolist()]
    mask = SpanMasking(ratio, length)(clip_noise([seed]), (tokens, 1))
    expected = one_after_the_other(spans, tokens - kept(tokens, ratio))
    assert mask[0].nonzero().flatten().tolist() == expected


def block(centre, side, grid):
    """Tokens of the square around a token, cut by the edges."""
    first = [centre // grid[1] - side // 2, centre % grid[1] - side // 2]
    rows, columns = (range(max(0, start), min(start + side, end)) for start, end in zip(first, grid))
    return {row * grid[1] + column for row in rows for column in columns}


@given(grid=grids, ratio=ratios, side=st.integers(1, 7), seed=st.integers(0, 2**63 - 1))
def test_inverse_blocks_are_visible_squares_and_single_tokens_make_up_the_number(grid, ratio, side, seed):
    tokens = grid[0] * grid[1]
    own, places = clip_noise([seed])(2 * tokens).view(tokens, 2).unbind(1)
    count = min(tokens, max(1, int(tokens * ((1 - ratio + 0.07) / side**2))))
    blocks = [block(int(place * tokens), side, grid) for place in places[:count]]
    mask = InverseBlockMasking(ratio, side)(clip_noise([seed]), grid)[0]
    visible, covered = set((~mask).nonzero().flatten().tolist()), set().union(*blocks)
    if len(covered) >= len(visible):
        assert visible <= covered
    else:
        assert covered <= visible
    for group in (covered, set(range(tokens)) - covered):  # single ones by their rank
        shown = [own[token] for token in group & visible]
        assert not shown or all(own[token] >= max(shown) for token in group - visible)


def test_eats_mask_has_five_blocks_and_leaves_102_patches():
    strategy = build_masking("inverse_block", {"mask_ratio": 0.8})
    assert strategy == InverseBlockMasking(0.8, side=5, surplus=0.07) and strategy.num_visible((64, 8)) == 102
    visible = ~strategy(ClipNoise(torch.arange(4000)), (64, 8)).view(-1, 64, 8)
    neighbours = (visible[:, 1:] & visible[:, :-1]).double().mean()
    assert neighbours > 2 * visible.double().mean() ** 2  # far from independent


def test_clones_of_a_clip_have_masks_of_their_own_that_follow_from_the_clips_seed():
    def masks(seeds, clones):
        return InverseBlockMasking(0.8)(cloned_noise(clip_noise(seeds), clones), (16, 8))

    both = masks([1, 2], 4)
    assert len(both.unique(dim=0)) == 8
    assert torch.equal(both, torch.cat([masks([1], 4), masks([2], 4)]))
    torch.manual_seed(0)
    assert len(RandomMasking(0.8)(cloned_noise(seeded_noise(torch.empty(2), None), 4), (16, 8)).unique(dim=0)) == 8


@pytest.mark.parametrize("seed", [None, torch.arange(40)], ids=["generator", "seeds"])
def test_normal_noise_is_normal_and_a_clips_own(seed):
    torch.manual_seed(0)
    source = torch.empty(40, 1)
    values = seeded_normal(source, seed, 5001)
    assert values.shape == (40, 5001) and values.dtype == torch.float32
    assert abs(values.mean()) < 0.01 and values.std() == pytest.approx(1, abs=0.01)
    assert (values.abs() > 1.96).double().mean().item() == pytest.approx(0.05, abs=0.002)
    assert abs((values[:-1] * values[1:]).mean()) < 0.01 and abs((values[:, :-1] * values[:, 1:]).mean()) < 0.01
    if seed is not None:
        assert torch.equal(seeded_normal(source[3:5], seed[3:5], 5001), values[3:5])
        assert torch.equal(seeded_normal(source, seed, 17), values[:, :17])


def test_a_batched_mask_is_the_first_clips_for_all():
    mask = RandomBatchedMasking(0.75)(clip_noise([3, 4, 5]), (8, 4))
    assert torch.equal(mask, RandomMasking(0.75)(clip_noise([3, 3, 3]), (8, 4)))


def padding_of(steps, grid):
    """Padding (B, L) of clips that are so many time steps long."""
    return (torch.arange(grid[0]) >= torch.tensor(steps)[:, None]).repeat_interleave(grid[1], dim=1)


@given(strategy=strategies, grid=grids, data=st.data())
def test_padding_is_never_hidden_and_the_number_depends_on_the_valid_tokens_only(strategy, grid, data):
    steps = data.draw(st.lists(st.integers(1, grid[0]), min_size=1, max_size=5))
    padding = padding_of(steps, grid)
    mask = strategy(clip_noise(range(len(steps))), grid, padding)
    assert mask.dtype == torch.bool
    assert not (mask & padding).any()
    visible = (~(mask | padding)).sum(1).tolist()
    assert visible == [strategy.num_visible((clip, grid[1])) for clip in steps]
    assert max(visible) <= strategy.num_visible(grid)


@given(strategy=strategies, grid=grids, more=st.integers(0, 20), seeds=seeds)
@example(strategy=InverseBlockMasking(0.00390625, 1), grid=(1, 16), more=1, seeds=[1])  # more blocks than tokens
def test_a_clip_has_the_same_mask_however_much_padding_follows(strategy, grid, more, seeds):
    assume(not isinstance(strategy, TimeFrequencyMasking))
    longer = (grid[0] + more, grid[1])
    alone = strategy(clip_noise(seeds), grid)
    mask = strategy(clip_noise(seeds), longer, padding_of([grid[0]] * len(seeds), longer))
    assert torch.equal(mask[:, : grid[0] * grid[1]], alone)


@pytest.mark.parametrize("strategy", BY_CLIP, ids=lambda strategy: type(strategy).__name__)
def test_a_clip_that_is_all_padding_has_nothing_hidden(strategy):
    mask = strategy(clip_noise([1, 2]), (16, 8), padding_of([0, 16], (16, 8)))
    assert not mask[0].any()
    assert mask[1].any()


def test_taken_tokens_are_those_at_the_positions():
    tokens = torch.arange(24.0).view(2, 4, 3)
    taken = take_tokens(tokens, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(taken, torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]]))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.floats(0, 1), st.integers(1, 70), st.integers(0, 99))
def test_spans_lie_inside_their_row_and_are_as_long_as_they_should_be(lengths, share, span, seed):
    torch.manual_seed(seed)
    hidden = random_spans(torch.tensor(lengths), 60, share, span)
    for row, length in zip(hidden, lengths):
        assert not row[length:].any()
        if length < 2 or not share:
            assert not row.any()
        starts = torch.cat([row[:1], row[1:] & ~row[:-1]]).sum()
        assert row.sum() >= starts * min(span, max(1, length // 2))


def test_spans_hide_the_share_of_independent_spans():
    torch.manual_seed(0)
    hidden = random_spans(torch.full((200,), 500), 500, 0.65, 10)
    assert pytest.approx(hidden.float().mean().item(), abs=0.02) == 1 - (1 - 0.065) ** 10
    hidden = random_spans(torch.full((2000,), 500), 500, 0.02, 10)
    assert hidden.float().mean().item() == pytest.approx(0.02, rel=0.1)  # spans hardly overlap
    assert not random_spans(torch.tensor([50]), 50, 0.0, 10).any()
