import pytest
import torch
from torch import nn

from modeling_axial.attention import AxialSelfAttention
from modeling_axial.layer_context import NO_CONTEXT, LayerContext
from modeling_axial.line_cache import LineCache, StaticLineCache
from modeling_axial.position_embeddings import AxisCells
from tests.test_modeling_axial_decoder import kinds, make_config, make_model, make_position_ids, redraw, variants
from tests.test_sampling import conditions, sample


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_all_positions_so_far_come_back(axis):
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, 2, 5, 3, 4, 6, generator=generator).unbind()
    length, dim, attention, other = key.shape[axis + 1], axis + 1, nn.Identity(), nn.Identity()
    cache = LineCache(axis, length)
    for _ in range(2):  # the second time on new lines
        for position in range(length):
            cache.position = position
            step = [states.narrow(dim, position, 1) for states in (key, value)]
            keys, values, mask = cache.append(attention, *step)
            cache.append(other, *(torch.zeros_like(states) for states in step))
            assert mask is None
            assert torch.equal(keys, key.narrow(dim, 0, position + 1))
            assert torch.equal(values, value.narrow(dim, 0, position + 1))
        key, value = -key, 2 * value


@pytest.mark.parametrize("cache", [LineCache(0, 3), StaticLineCache(0, 3, torch.device("cpu"))], ids=["", "static"])
def test_a_cache_begins_at_position_zero(cache):
    key, value = torch.randn(2, 2, 1, 4, 6).unbind()
    keys, values, _ = cache.append(nn.Identity(), key, value)
    assert torch.equal(keys[:, :1], key) and torch.equal(values[:, :1], value)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_static_tensors_and_a_mask_of_what_has_come(axis):
    key, value = torch.randn(2, 1, 3, 5, 7, 2, 4).unbind()
    length, dim = key.shape[axis + 1], axis + 1
    attention, cache = nn.Identity(), StaticLineCache(axis, length, torch.device("cpu"))
    for position in range(length):
        cache.position = position
        step = [states.narrow(dim, position, 1) for states in (key, value)]
        keys, values, mask = cache.append(attention, *step)
        assert keys.shape == values.shape == key.shape
        assert mask.flatten().tolist() == [place <= position for place in range(length)]
        assert mask.shape == (length, *[1] * (2 - axis)), "it broadcasts over the keys' (batch, *grid)"
        for kept, given in ((keys, key), (values, value)):
            assert torch.equal(kept.narrow(dim, 0, position + 1), given.narrow(dim, 0, position + 1))


def test_what_a_position_wants_is_prepared_once_for_all_lines(monkeypatch):
    """As many times as there are positions, not cells, and for each level alone."""
    made = []
    prepare = AxialSelfAttention.prepare
    monkeypatch.setattr(
        AxialSelfAttention,
        "prepare",
        staticmethod(lambda config, axis, cells: made.append(axis.axis) or prepare(config, axis, cells)),
    )
    model = make_model((3, 4, 5), num_channels=1, vocab_size=11, position_embedding="rotary")
    expected = sample(model, sampler="semi_parallel")
    made.clear()
    assert torch.equal(sample(model), expected)
    # Levels along an axis attend along the faster ones, too; none but the inner one runs on its last slice.
    assert [made.count(axis) for axis in range(3)] == [2, 2 + 3, 2 + 3 + 5]


def attended_by_loops(attention, hidden_states, positions):
    """The causal attention of lines (lines, length, hidden_size) by its formula, one head, query and key at a time.

    `positions`: of the cells, one number each.
    """
    kinds = [type(position).__name__ for position in attention.positions]
    query, key, value = (
        projection(hidden_states).unflatten(-1, (-1, attention.head_dim))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    pairs = attention.head_dim // 2
    frequencies = torch.tensor([10000.0 ** (-pair / pairs) for pair in range(pairs)], dtype=torch.float64)

    def turned(states, position):
        numbers = torch.complex(states[..., :pairs], states[..., pairs:])
        numbers = numbers * torch.polar(torch.ones(pairs, dtype=torch.float64), position * frequencies)
        return torch.cat((numbers.real, numbers.imag), -1)

    rows = []
    for t in range(hidden_states.shape[1]):
        scores = []
        for s in range(t + 1):
            q, k = query[:, t], key[:, s]
            if "RotaryPosition" in kinds:
                q, k = turned(q, positions[t]), turned(k, positions[s])
            score = (q * k).sum(-1) * attention.head_dim**-0.5
            if "RelativePosition" in kinds:
                table = attention.positions[kinds.index("RelativePosition")].table
                reach = len(table) // 2
                row = max(min(positions[t] - positions[s], reach), -reach) + reach
                below, share = int(row), row - int(row)
                score = score + (1 - share) * table[below] + share * table[min(below + 1, 2 * reach)]
            scores.append(score)
        weights = torch.stack(scores, -1).softmax(-1)  # (lines, heads, keys)
        rows.append(torch.einsum("bns,bsnd->bnd", weights, value[:, : t + 1]).flatten(-2))
    return attention.o_proj(torch.stack(rows, 1))


@kinds
@pytest.mark.parametrize("positions", [None, (-1.0, 0.5, 0.75, 2.0, 1.5, 6.0, 40.25)], ids=["counted", "given"])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_layer_alone_given_one_position_after_the_other(axis, static, positions, position_embedding):
    """As the whole line at once, and as by loops; the native lengths are 3, so that distances leave the tables."""
    config = make_config((3, 3, 3), position_embedding=position_embedding)
    attention = redraw(AxialSelfAttention(config, axis, is_causal=True).double())
    grid = [3, 2, 2]
    grid[axis] = 7
    hidden_states = torch.randn(2, *grid, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    lines = hidden_states.movedim(axis + 1, -2)
    context = NO_CONTEXT
    if positions is not None:
        given = AxisCells(torch.tensor([positions], dtype=torch.float64))
        context = LayerContext(cells=tuple(given if each == axis else None for each in range(3)))
    with torch.no_grad():
        whole = attention(hidden_states, context)
        expected = attended_by_loops(attention, lines.flatten(0, -3), positions or range(7))
        expected = expected.view(lines.shape).movedim(-2, axis + 1)
        torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12)
        cache = StaticLineCache(axis, 7, hidden_states.device) if static else LineCache(axis, 7)
        for position in range(7):
            cache.position = position
            step = attention(hidden_states.narrow(axis + 1, position, 1), context._replace(cache=cache))
            torch.testing.assert_close(step, whole.narrow(axis + 1, position, 1), rtol=1e-12, atol=1e-12)


@variants
def test_a_step_of_static_shapes_draws_the_same_pixels(monkeypatch, overrides):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step, **options: compiled.append(step) or step)
    model = make_model((4, 5), **{"vocab_size": 17, **overrides})
    options = conditions(model) | {"position_ids": make_position_ids((4, 5))}
    shapes = []
    append = StaticLineCache.append

    def watched(self, attention, key, value):
        keys, values, mask = append(self, attention, key, value)
        lengths = keys.shape[self.axis + 1], values.shape[self.axis + 1]
        shapes.append((self.axis, self.position, *lengths, mask.flatten().tolist()))
        return keys, values, mask

    monkeypatch.setattr(StaticLineCache, "append", watched)
    assert torch.equal(sample(model, sampler="compiled", **options), sample(model, **options))
    grid = model.config.grid_shape
    assert len(compiled) == model.config.num_grids * len(grid)
    last = [*(length - 1 for length in grid[:-1]), grid[-1]]  # no level but the inner one runs on its last slice
    assert {shape[:2] for shape in shapes} == {(axis, place) for axis, end in enumerate(last) for place in range(end)}
    for axis, position, keys, values, mask in shapes:
        assert keys == values == grid[axis] and mask == [index <= position for index in range(grid[axis])]


# Planted faults: comparisons of samplers can fail


def forget_outer_cache(monkeypatch):
    append = LineCache.append

    def forgetful(self, attention, key, value):
        keys, values, _ = append(self, attention, key, value)
        return (key, value, None) if self.axis == 0 else (keys, values, None)

    monkeypatch.setattr(LineCache, "append", forgetful)


def forget_inner_cache(monkeypatch):
    append = LineCache.append

    def forgetful(self, attention, key, value):
        keys, values, _ = append(self, attention, key, value)
        return (key, value, None) if self.axis == 1 else (keys, values, None)

    monkeypatch.setattr(LineCache, "append", forgetful)


def read_one_too_few(monkeypatch):
    append = LineCache.append

    def short(self, attention, key, value):
        keys, values, _ = append(self, attention, key, value)
        length = max(1, self.position)
        return keys.narrow(self.axis + 1, 0, length), values.narrow(self.axis + 1, 0, length), None

    monkeypatch.setattr(LineCache, "append", short)


def share_a_cache_between_blocks(monkeypatch):
    append = LineCache.append
    monkeypatch.setattr(
        LineCache,
        "append",
        lambda self, attention, key, value: append(self, next(iter(self._kept), attention), key, value),
    )


def count_from_zero_on(axis):
    def plant(monkeypatch):
        select = LineCache.select

        def forgetful(self, cells):
            found = select(self, cells)
            zero = {"positions": torch.zeros_like(found.positions), "queries": torch.zeros_like(found.queries)}
            return found._replace(**zero) if self.axis == axis else found

        monkeypatch.setattr(LineCache, "select", forgetful)

    return plant


@pytest.mark.parametrize(
    "overrides",
    [{"position_embedding": "rotary"}, {"position_embedding": "relative"}, {"attention_window": 2}],
    ids=str,
)
@pytest.mark.parametrize("axis", [0, 1])
def test_positions_of_a_cache_that_are_wrong_are_seen(monkeypatch, axis, overrides):
    model = make_model((5, 6), vocab_size=11, num_channels=1, num_inner_layers=2, **overrides)
    expected = sample(model, 4)
    count_from_zero_on(axis)(monkeypatch)
    assert not torch.equal(sample(model, 4), expected)
    assert torch.equal(sample(model, 4, sampler="semi_parallel"), expected)


@pytest.mark.parametrize(
    "plant", [forget_outer_cache, forget_inner_cache, read_one_too_few, share_a_cache_between_blocks]
)
@pytest.mark.parametrize("gain", [1.0, 4.0, 20.0])
def test_a_cache_that_is_wrong_is_seen(monkeypatch, plant, gain):
    model = make_model((5, 6), vocab_size=11, num_channels=1, num_inner_layers=2, gain=gain)
    expected = sample(model, 4)
    plant(monkeypatch)
    assert not torch.equal(sample(model, 4), expected)
    assert torch.equal(sample(model, 4, sampler="semi_parallel"), expected)
