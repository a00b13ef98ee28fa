"""Device functions that kernels share: Philox normals, and x0 from a raw model output."""

import triton
import triton.language as tl

# what a kernel adds as noise
NOISE_NONE = tl.constexpr(0)
NOISE_GIVEN = tl.constexpr(1)
NOISE_COUNTER = tl.constexpr(2)


@triton.jit
def _box_muller(word_radius, word_angle, DTYPE: tl.constexpr):
    # the word 0 would be log(0): it counts as 1; one fp32 uniform serves every precision
    word = tl.where(word_radius == 0, 1, word_radius.to(tl.int64))
    scale = tl.full((), 2.0**-32, DTYPE)
    two_pi = tl.full((), 6.283185307179586, DTYPE)
    radius = tl.sqrt(-2.0 * tl.log(word.to(tl.uint32).to(tl.float32).to(DTYPE) * scale))
    angle = two_pi * (word_angle.to(tl.float32).to(DTYPE) * scale)
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _words_of_four(
    seed,  # int64 scalar
    node,  # int32 scalar
    stream,  # int32 scalar
    quarter,  # int32 [Q], element // 4
):
    zero = quarter * 0
    return tl.philox(seed, quarter, zero + node, zero + stream, zero)


@triton.jit
def philox_normal_1d(seed, node, stream, quarter, DTYPE: tl.constexpr):
    """Normals [4 Q] of elements 4 quarter .. 4 quarter + 3, see `ctd_engine.noise`."""
    w0, w1, w2, w3 = _words_of_four(seed, node, stream, quarter)
    n0, n1 = _box_muller(w0, w1, DTYPE)
    n2, n3 = _box_muller(w2, w3, DTYPE)
    # [Q, 2, 2] with the words in their order: 2 i + j
    four = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    return tl.reshape(four, (4 * quarter.shape[0],))


@triton.jit
def philox_normal_2d(seed, nodes, stream, quarter, DTYPE: tl.constexpr):
    """The same for nodes int32 [L, 1] and quarter int32 [1, Q]: normals [L, 4 Q]."""
    w0, w1, w2, w3 = tl.philox(
        seed, quarter + nodes * 0, nodes + quarter * 0, quarter * 0 + nodes * 0 + stream, nodes * 0
    )
    n0, n1 = _box_muller(w0, w1, DTYPE)
    n2, n3 = _box_muller(w2, w3, DTYPE)
    four = tl.join(tl.join(n0, n2), tl.join(n1, n3))
    return tl.reshape(four, (nodes.shape[0], 4 * quarter.shape[1]))


@triton.jit
def clip_keep_nan(x, bound):
    """Clip to [-bound, bound]; a maximum would turn NaN into a bound."""
    return tl.where(x > bound, bound, tl.where(x < -bound, -bound, x))


@triton.jit
def guided(m, m_null, scale):
    """Classifier-free guidance, m_null + scale (m - m_null)."""
    return m_null + scale * (m - m_null)
