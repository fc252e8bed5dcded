/* Types of one scale a block, without importances: one block of 32 values along the vectors.
 *
 * Every operation on a value stands alone here, and extremes do not depend on an order, so the lanes can hold a block's
 * own values. Nothing is transposed, and the quantizer is as fast as memory. */

#ifndef QUANTKIT_ALONG_H
#define QUANTKIT_ALONG_H

#include "half.h"
#include "lanes.h"

enum { PER_BLOCK = 32 / LANES };

INLINE vf vector_at(const float *x) {
    vf all;
    memcpy(&all, x, sizeof all);
    return all;
}

/* The lanes in another order, by halves, quarters and so on: the steps of a reduction. */
#if LANES == 16
#define EXCHANGE_HALVES(v) SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define EXCHANGE_4(v) SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
#define EXCHANGE_2(v) SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
#define EXCHANGE_1(v) SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#elif LANES == 8
#define EXCHANGE_HALVES(v) SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3)
#define EXCHANGE_4(v) (v)
#define EXCHANGE_2(v) SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5)
#define EXCHANGE_1(v) SHUFFLE(v, v, 1, 0, 3, 2, 5, 4, 7, 6)
#else
#define EXCHANGE_HALVES(v) SHUFFLE(v, v, 2, 3, 0, 1)
#define EXCHANGE_4(v) (v)
#define EXCHANGE_2(v) (v)
#define EXCHANGE_1(v) SHUFFLE(v, v, 1, 0, 3, 2)
#endif

/* The largest lane of each half, in all lanes of the half. */
INLINE vf largest_of_half(vf v) {
    if (LANES > 8) v = greatest(v, (vf)EXCHANGE_4((vi)v));
    if (LANES > 4) v = greatest(v, (vf)EXCHANGE_2((vi)v));
    return greatest(v, (vf)EXCHANGE_1((vi)v));
}

INLINE float largest_magnitude(const vf *x) {
    vf most = absolute(x[0]);
    UNROLLED
    for (int i = 1; i < PER_BLOCK; i++) most = greatest(most, absolute(x[i]));
    return largest_of_half(greatest(most, (vf)EXCHANGE_HALVES((vi)most)))[0];
}

/* Two vectors' lanes in other places, for the steps of `largest_of_each`: each pair of macros halves what is left of a
 * vector's own lanes. The first two stay within 128 bits, which processors shuffle in one cycle. */
#if LANES == 16
#define EVEN_1(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define ODD_1(a, b) SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define EVEN_2(a, b) SHUFFLE(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29)
#define ODD_2(a, b) SHUFFLE(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31)
#define EVEN_4(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27)
#define ODD_4(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31)
#elif LANES == 8
#define EVEN_1(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define ODD_1(a, b) SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#define EVEN_2(a, b) SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13)
#define ODD_2(a, b) SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15)
#define EVEN_4(a, b) SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define ODD_4(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#else
#define EVEN_1(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define ODD_1(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#define EVEN_2(a, b) SHUFFLE(a, b, 0, 1, 4, 5)
#define ODD_2(a, b) SHUFFLE(a, b, 2, 3, 6, 7)
#endif
#define LARGER(kind, a, b) greatest((vf)EVEN_##kind((vi)a, (vi)b), (vf)ODD_##kind((vi)a, (vi)b))

/* The largest lane of vector k in lane k. */
INLINE vf largest_of_each(vf *v) {
    UNROLLED
    for (int k = 0; k < LANES; k += 4)
        v[k / 4] = LARGER(2, LARGER(1, v[k], v[k + 1]), LARGER(1, v[k + 2], v[k + 3]));
#if LANES > 4
    UNROLLED
    for (int count = LANES / 8; count; count /= 2)
        UNROLLED
        for (int k = 0; k < count; k++) v[k] = LARGER(4, v[2 * k], v[2 * k + 1]);
#endif
    return v[0];
}

/* The smallest and the largest value of LANES blocks. Of zeros of both signs it is any one. */
INLINE void ranges(const float *blocks, vf *low, vf *high) {
    vf highs[LANES], lows[LANES];
    UNROLLED
    EACH_LANE {
        highs[k] = lows[k] = vector_at(blocks + 32 * k);
        UNROLLED
        for (int i = 1; i < PER_BLOCK; i++) {
            vf x = vector_at(blocks + 32 * k + i * LANES);
            highs[k] = greatest(highs[k], x);
            lows[k] = least(lows[k], x);
        }
        lows[k] = -lows[k];
    }
    *high = largest_of_each(highs);
    *low = -largest_of_each(lows);
}

/* The bytes of a block's levels. */
INLINE void narrow(const vi *level, uint8_t *bytes) {
    UNROLLED
    for (int i = 0; i < PER_BLOCK; i++) {
        vb part = low_bytes(level[i]);
        memcpy(bytes + i * LANES, &part, sizeof part);
    }
}

/* The fifth bits of 32 levels: the products of 8 bytes with powers of two meet in one byte. */
INLINE uint32_t fifth_bits(const uint8_t *level) {
    uint32_t bits = 0;
    for (int i = 0; i < 4; i++) {
        uint64_t eight;
        memcpy(&eight, level + 8 * i, 8);
        bits |= (uint32_t)(((eight >> 4 & 0x0101010101010101u) * 0x0102040810204080u) >> 56) << 8 * i;
    }
    return bits;
}

/* Levels of four or five bits after the scale: as `store_levels`, for one block. A byte keeps only the lowest bits. */
INLINE void store_block(const vi *level, int bits, uint8_t *out) {
    if (bits == 5) {
        uint8_t bytes[32];
        narrow(level, bytes);
        uint32_t high = fifth_bits(bytes);
        memcpy(out, &high, 4);
        out += 4;
    }
    UNROLLED
    for (int i = 0; i < PER_BLOCK / 2; i++) {
        vi low = bits == 5 ? level[i] & 15 : level[i], pair = low | level[i + PER_BLOCK / 2] << 4;
        vb part = low_bytes(pair);
        memcpy(out + i * LANES, &part, sizeof part);
    }
}

#endif
