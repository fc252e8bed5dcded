/* IEEE half precision: conversions with the rounding of ggml and numpy, to nearest, ties to even. */

#ifndef QUANTKIT_HALF_H
#define QUANTKIT_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
    if (rest < 0x38800000) {
        /* Subnormal: let the float unit round at the position of half's last bit. */
        float small, anchor = 0.5f;
        memcpy(&small, &rest, 4);
        small += anchor;
        uint32_t rounded, base;
        memcpy(&rounded, &small, 4);
        memcpy(&base, &anchor, 4);
        return (uint16_t)(sign | (rounded - base));
    }
    uint32_t odd = rest >> 13 & 1;
    return (uint16_t)(sign | ((rest + 0xfff + odd - 0x38000000) >> 13));
}

static inline float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    float value;
    if (exponent == 0) {
        value = (float)fraction * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    uint32_t bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
    memcpy(&value, &bits, 4);
    return value;
}

#endif
