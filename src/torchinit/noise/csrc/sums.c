/* What a tensor's values add up to, W numbers at a time, for the instruction set that this file is compiled for.
   SUMS_NAME is the name of the one function it exports. Sums are carried in binary64, each lane by itself. */
#include "kernel.h"
#include <math.h>
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#if defined(__AVX512F__)
#define W 16
#define LEAST(a, b) (vf)_mm512_min_ps((__m512)(a), (__m512)(b))
#define MOST(a, b) (vf)_mm512_max_ps((__m512)(a), (__m512)(b))
#elif defined(__AVX2__)
#define W 8
#define LEAST(a, b) (vf)_mm256_min_ps((__m256)(a), (__m256)(b))
#define MOST(a, b) (vf)_mm256_max_ps((__m256)(a), (__m256)(b))
#else
#define W 4
#define LEAST(a, b) SELECT((a) < (b), a, b)
#define MOST(a, b) SELECT((a) > (b), a, b)
#endif
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint16_t vh __attribute__((vector_size(2 * W)));
typedef float vf __attribute__((vector_size(4 * W)));
typedef float vg __attribute__((vector_size(2 * W))); /* half as many, as wide as doubles in a register are */
typedef double vd __attribute__((vector_size(4 * W)));
typedef int64_t vl __attribute__((vector_size(4 * W)));

#define SELECT(mask, a, b) ((vf)(((vi)(a) & (mask)) | ((vi)(b) & ~(mask))))
#define SELECT_WIDE(mask, a, b) ((vd)(((vl)(a) & (mask)) | ((vl)(b) & ~(mask))))

INLINE float from_half(uint16_t half) {
    uint32_t size = half & 0x7FFFu, bits = size << 13;
    float value;
    if (size >= 0x7C00u) bits |= 0x7F800000u;
    memcpy(&value, &bits, 4);
    if (size < 0x7C00u) value *= 0x1p112f;
    return half & 0x8000u ? -value : value;
}

INLINE double one(const char *data, int dtype, uint64_t i) {
    switch (dtype) {
    case FLOAT32: return ((const float *)data)[i];
    case FLOAT64: return ((const double *)data)[i];
    case FLOAT16: return from_half(((const uint16_t *)data)[i]);
    }
    uint32_t bits = (uint32_t)((const uint16_t *)data)[i] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE vf many(const char *data, int dtype, uint64_t i) {
    vf x;
    if (dtype == FLOAT32) {
        memcpy(&x, data + 4 * i, sizeof x);
        return x;
    }
    vh h;
    memcpy(&h, data + 2 * i, sizeof h);
    if (dtype == BFLOAT16) return (vf)(__builtin_convertvector(h, vi) << 16);
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps((__m128i)h);
#else
    for (int l = 0; l < W; l++) x[l] = from_half(h[l]);
    return x;
#endif
}

INLINE void add(sums *s, double x, double shift) {
    s->total += x - shift;
    s->square += (x - shift) * (x - shift);
    s->low = x < s->low ? x : s->low;
    s->high = x > s->high ? x : s->high;
}

/* Puts the lanes together. */
#define GATHER(low, high, lanes)                                                                                      \
    for (int l = 0; l < W / 2; l++) s->total += total[0][l] + total[1][l], s->square += square[0][l] + square[1][l];   \
    for (int l = 0; l < lanes; l++) {                                                                                  \
        s->low = low[l] < s->low ? low[l] : s->low;                                                                    \
        s->high = high[l] > s->high ? high[l] : s->high;                                                               \
    }

/* Adds as many as fill registers, and says how many; two chains of additions, since one would wait for itself. */
INLINE uint64_t add_floats(sums *s, const char *data, int dtype, uint64_t n, double shift) {
    vd total[2] = {{0}}, square[2] = {{0}};
    vf low = (vf){0} + INFINITY, high = (vf){0} - INFINITY;
    uint64_t i = 0;
    for (; i + W <= n; i += W) {
        union { vf all; vg half[2]; } x = {many(data, dtype, i)};
        low = LEAST(x.all, low), high = MOST(x.all, high);
        for (int k = 0; k < 2; k++) {
            vd moved = __builtin_convertvector(x.half[k], vd) - shift;
            total[k] += moved, square[k] += moved * moved;
        }
    }
    GATHER(low, high, W)
    return i;
}

INLINE uint64_t add_doubles(sums *s, const char *data, uint64_t n, double shift) {
    vd total[2] = {{0}}, square[2] = {{0}}, low = (vd){0} + INFINITY, high = (vd){0} - INFINITY;
    uint64_t i = 0;
    for (; i + W <= n; i += W)
        for (int k = 0; k < 2; k++) {
            vd x, moved;
            memcpy(&x, data + 8 * (i + W / 2 * k), sizeof x);
            moved = x - shift;
            low = SELECT_WIDE(x < low, x, low), high = SELECT_WIDE(x > high, x, high);
            total[k] += moved, square[k] += moved * moved;
        }
    GATHER(low, high, W / 2)
    return i;
}

INLINE void add_all(sums *s, const char *data, int dtype, uint64_t n, double shift) {
    uint64_t i = dtype == FLOAT64 ? add_doubles(s, data, n, shift) : add_floats(s, data, dtype, n, shift);
    for (; i < n; i++) add(s, one(data, dtype, i), shift);
    if (s->total == s->total) return;
    /* Sums know of a NaN, comparisons do not. */
    for (i = 0; i < n; i++) {
        double x = one(data, dtype, i);
        if (x != x) s->low = s->high = x;
    }
}

void SUMS_NAME(const char *data, int dtype, uint64_t n, double shift, sums *s) {
    *s = (sums){0, 0, INFINITY, -INFINITY};
    switch (dtype) {
    case FLOAT32: add_all(s, data, FLOAT32, n, shift); break;
    case FLOAT64: add_all(s, data, FLOAT64, n, shift); break;
    case BFLOAT16: add_all(s, data, BFLOAT16, n, shift); break;
    default: add_all(s, data, FLOAT16, n, shift);
    }
}
