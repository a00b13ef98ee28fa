"""Device functions that kernels share: Philox normals, and x0 from a raw model output."""

import triton
import triton.language as tl

from ctd_engine import noise

# what a kernel adds as noise
NOISE_NONE = tl.constexpr(0)
NOISE_GIVEN = tl.constexpr(1)
NOISE_COUNTER = tl.constexpr(2)
# the counter's third word, as in the reference
STREAM_STEP = tl.constexpr(noise.STREAM_STEP)


@triton.jit
def ring_offset(node, ring, stride):
    """Where node lies in a ring of points: (node mod ring) stride, node int32, in int64."""
    return (node % ring).to(tl.int64) * stride


@triton.jit
def _number(value: tl.constexpr, DTYPE: tl.constexpr):
    # a bare literal is rounded to fp32, whatever it is multiplied with
    return tl.full((), value, DTYPE)


@triton.jit
def _head(x):
    """x in fp32 without its lower 12 bits: the product of two heads is exact."""
    return (x.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)


@triton.jit
def _radius_two(word):
    """sqrt(-2 log(word / 2^32)) in fp32 as head + tail, to a third of a unit in the last place.

    word = 2^k (1 + f) with f in [-1/3, 1/3), and log(1 + f) = f + f² p(f). Each sum below keeps
    what its rounding loses. A product of a rounded root, cosine and logarithm is up to 5 units off.
    """
    bits = word.to(tl.int32, bitcast=True)
    power = (bits - 0x3F2AAAAB) & -0x800000
    f = (bits - power).to(tl.float32, bitcast=True) - 1.0
    # minimax on [-1/3, 1/3], relative to the logarithm: 2^-27.7
    p = 0.14004762470722198 - 0.12948833405971527 * f
    p = p * f - 0.12167185544967651
    p = p * f + 0.14001159369945526
    p = p * f - 0.16682302951812744
    p = p * f + 0.20010747015476227
    p = p * f - 0.24999716877937317
    p = p * f + 0.3333320915699005
    p = p * f - 0.5
    # -2 log u = 2 n log 2 - 2 f - 2 f² p, where n 1.386... is exact: 6 bits times 17
    n = (32 - (power >> 23)).to(tl.float32)
    large = n * 1.38629150390625
    s = large - 2.0 * f
    rest = ((large - s) - 2.0 * f) + (n * 2.8572136405724535e-06 - 2.0 * (f * f * p))
    root = tl.sqrt(s + rest)
    head = _head(root)
    # sqrt(a) - h = (a - h²) / (sqrt(a) + h); u = 1 has radius 0
    both = root + head
    return head, ((s - head * head) + rest) / tl.where(both > 0.0, both, 1.0)


@triton.jit
def _sin_cos_turn_two(r):
    """sin and cos of 2 pi r for |r| <= 1/8 in fp32, by the Taylor series, each as head and tail.

    The library's functions keep a table in local memory, for arguments that never come here.
    """
    z = r * r
    p = 42.058693944897634 * z - 76.70585975306135
    p = p * z + 81.60524927607504
    p = (p * z - 41.341702240399755) * z
    # 2 pi = 6.28125 + 0.0019..., the first in 9 bits, so that its product with a head is exact
    r_head = _head(r)
    exact = r_head * 6.28125
    rest = (r - r_head) * 6.28125 + r * (p + 0.0019353071795864769)
    sin_head = _head(exact + rest)
    q = -26.42625678337438 * z + 60.24464137187666
    q = q * z - 85.45681720669373
    q = q * z + 64.93939402266829
    below = (q * z - 19.739208802178716) * z
    cos_head = _head(1.0 + below)
    return sin_head, (exact - sin_head) + rest, cos_head, (1.0 - cos_head) + below


@triton.jit
def _times_two(a_head, a_tail, b_head, b_tail):
    # (a_head + a_tail) (b_head + b_tail), rounded once
    return a_head * b_head + (a_head * b_tail + a_tail * (b_head + b_tail))


@triton.jit
def _sin_cos_turn(r, DTYPE: tl.constexpr):
    """sin and cos of 2 pi r for |r| <= 1/8 in fp64, by the Taylor series in r."""
    z = r * r
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
    return sin, c * z + 1.0


@triton.jit
def _box_muller(word_radius, word_angle, DTYPE: tl.constexpr):
    # as `ctd_engine.noise`: the word 0 counts as 1, one fp32 uniform serves every precision
    scale = _number(2.0**-32, DTYPE)
    word = tl.where(word_radius == 0, 1, word_radius.to(tl.int64)).to(tl.uint32).to(tl.float32)
    turn = word_angle.to(tl.float32).to(DTYPE) * scale
    # less the nearest quarter turn, which is exact
    below = tl.floor(4.0 * turn)
    quarter = below.to(tl.int32) + (4.0 * turn - below > 0.5).to(tl.int32)
    eighth = turn - 0.25 * quarter.to(DTYPE)
    if tl.float64 == DTYPE:
        radius = tl.sqrt(-2.0 * tl.log(word.to(DTYPE) * scale))
        sin, cos = _sin_cos_turn(eighth, DTYPE)
        sin, cos = radius * sin, radius * cos
    else:
        head, tail = _radius_two(word)
        sin_head, sin_tail, cos_head, cos_tail = _sin_cos_turn_two(eighth)
        sin = _times_two(head, tail, sin_head, sin_tail)
        cos = _times_two(head, tail, cos_head, cos_tail)
    odd = quarter % 2 == 1
    cos, sin = tl.where(odd, -sin, cos), tl.where(odd, cos, sin)
    half = (quarter == 2) | (quarter == 3)
    return tl.where(half, -cos, cos), tl.where(half, -sin, sin)


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
