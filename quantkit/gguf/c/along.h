/* Types of one scale a block, without importances: one block of 32 values along the vectors.
 *
 * Every operation on a value stands alone here, and extremes do not depend on an order, so the lanes can hold a block's
 * own values. Nothing is transposed, and the quantizer is as fast as memory. */

#ifndef QUANTKIT_ALONG_H
#define QUANTKIT_ALONG_H

#include "half.h"
#include "lanes.h"

enum { PER_BLOCK = 32 / LANES };

/* GCC keeps a loop at -O2 otherwise. */
#define UNROLLED _Pragma("GCC unroll 32")

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
    for (int i = 1; i < PER_BLOCK; i++) most = greatest(most, absolute(x[i]));
    return largest_of_half(greatest(most, (vf)EXCHANGE_HALVES((vi)most)))[0];
}

/* The largest lane of vector k in lane k: halves interleaved as in `transpose`, and the larger of each two lanes kept. */
INLINE vf largest_of_each(vf *v) {
    UNROLLED
    for (int count = LANES / 2; count; count /= 2)
        UNROLLED
        for (int k = 0; k < count; k++)
            v[k] = greatest(
                (vf)FIRST_HALVES((vi)v[k], (vi)v[k + count]), (vf)SECOND_HALVES((vi)v[k], (vi)v[k + count]));
    return v[0];
}

/* The smallest and the largest value of LANES blocks. Of zeros of both signs it is any one. */
INLINE void ranges(const float *const *block, vf *low, vf *high) {
    vf highs[LANES], lows[LANES];
    UNROLLED
    EACH_LANE {
        vf x[PER_BLOCK];
        memcpy(x, block[k], sizeof x);
        highs[k] = lows[k] = x[0];
        for (int i = 1; i < PER_BLOCK; i++) {
            highs[k] = greatest(highs[k], x[i]);
            lows[k] = least(lows[k], x[i]);
        }
        lows[k] = -lows[k];
    }
    *high = largest_of_each(highs);
    *low = -largest_of_each(lows);
}

/* The bytes of a block's levels. */
INLINE void narrow(const vi *level, uint8_t *bytes) {
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
    for (int i = 0; i < PER_BLOCK / 2; i++) {
        vi low = bits == 5 ? level[i] & 15 : level[i], pair = low | level[i + PER_BLOCK / 2] << 4;
        vb part = low_bytes(pair);
        memcpy(out + i * LANES, &part, sizeof part);
    }
}

#endif
