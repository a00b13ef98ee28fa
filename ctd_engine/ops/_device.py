"""Device functions that kernels share: Philox normals, and x0 from a raw model output."""

import triton
import triton.language as tl

# what a kernel adds as noise
NOISE_NONE = tl.constexpr(0)
NOISE_GIVEN = tl.constexpr(1)
NOISE_COUNTER = tl.constexpr(2)


@triton.jit
def ring_offset(node, ring, stride):
    """Where node lies in a ring of points: (node mod ring) stride, node int32, in int64."""
    return (node % ring).to(tl.int64) * stride


@triton.jit
def _number(value: tl.constexpr, DTYPE: tl.constexpr):
    # a bare literal is rounded to fp32, whatever it is multiplied with
    return tl.full((), value, DTYPE)


@triton.jit
def _sin_cos_turn(r, DTYPE: tl.constexpr):
    """sin and cos of 2 pi r for |r| <= 1/8, by the Taylor series in r.

    The library's functions keep a table in local memory, for arguments that never come here.
    """
    z = r * r
    if tl.float64 == DTYPE:
        s = _number(-0.7181223017785001, DTYPE) * z + _number(3.8199525848482821, DTYPE)
        s = s * z - _number(15.094642576822984, DTYPE)
        s = s * z + _number(42.058693944897634, DTYPE)
        s = s * z - _number(76.70585975306135, DTYPE)
        s = s * z + _number(81.60524927607504, DTYPE)
        s = s * z - _number(41.341702240399755, DTYPE)
        sin = r * (s * z + _number(6.283185307179586, DTYPE))
        c = _number(0.28200596845579096, DTYPE) * z - _number(1.7143907110886724, DTYPE)
        c = c * z + _number(7.903536371318467, DTYPE)
        c = c * z - _number(26.42625678337438, DTYPE)
        c = c * z + _number(60.24464137187666, DTYPE)
        c = c * z - _number(85.45681720669373, DTYPE)
        c = c * z + _number(64.93939402266829, DTYPE)
        c = c * z - _number(19.739208802178716, DTYPE)
    else:
        s = 42.058693944897634 * z - 76.70585975306135
        s = s * z + 81.60524927607504
        s = s * z - 41.341702240399755
        # 2 pi in two parts: rounded to fp32 alone it would cost half a digit
        sin = r * 6.2831854820251465 + r * (s * z - 1.7484555314695172e-7)
        c = -26.42625678337438 * z + 60.24464137187666
        c = c * z - 85.45681720669373
        c = c * z + 64.93939402266829
        c = c * z - 19.739208802178716
    return sin, c * z + 1.0


@triton.jit
def _box_muller(word_radius, word_angle, DTYPE: tl.constexpr):
    # as `ctd_engine.noise`: the word 0 counts as 1, one fp32 uniform serves every precision
    scale = _number(2.0**-32, DTYPE)
    word = tl.where(word_radius == 0, 1, word_radius.to(tl.int64)).to(tl.uint32)
    radius = tl.sqrt(-2.0 * tl.log(word.to(tl.float32).to(DTYPE) * scale))
    turn = word_angle.to(tl.float32).to(DTYPE) * scale
    # less the nearest quarter turn, which is exact
    below = tl.floor(4.0 * turn)
    quarter = below.to(tl.int32) + (4.0 * turn - below > 0.5).to(tl.int32)
    sin, cos = _sin_cos_turn(turn - 0.25 * quarter.to(DTYPE), DTYPE)
    odd = quarter % 2 == 1
    cos, sin = tl.where(odd, -sin, cos), tl.where(odd, cos, sin)
    half = (quarter == 2) | (quarter == 3)
    return radius * tl.where(half, -cos, cos), radius * tl.where(half, -sin, sin)


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
