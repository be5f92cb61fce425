/* The stream's arithmetic, W elements at a time, for the instruction set that this file is compiled for.
   LANES_NAME is the name of the one function it exports. Same bits as philox.py: integer operations and single
   binary32 + - * / only, each rounded by itself (-ffp-contract=off). docs/reference/stream.md is the definition. */
#include "kernel.h"
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX2__)
#define W 8
#else
#define W 4
#endif
typedef uint32_t vu __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef float vf __attribute__((vector_size(4 * W)));
typedef uint32_t word __attribute__((may_alias));

#define ROUNDS 10
#define M0 0xD2511F53u
#define M1 0xCD9E8D57u
#define GROUP 32          /* elements that share eight counters */
#define UNIT 64           /* elements drawn at once: any two groups */
#define CHUNK 1024        /* elements between two passes over the tails; the buffers stay in the first-level cache */
#define SPAN (1ull << 34) /* elements whose counters have the same upper word */

#define SPLAT(x) ((vf){0} + (x))
#define SELECT(mask, a, b) ((vf)(((vi)(a) & (mask)) | ((vi)(b) & ~(mask))))

/* What a piece needs again and again: the key schedule, spread over the lanes where that saves instructions. */
typedef struct {
    uint32_t k0[ROUNDS], k1[ROUNDS], third, fourth;
#if defined(__SSE4_1__)
    uint32_t wide[2 * ROUNDS][W] __attribute__((aligned(64)));
#endif
} schedule;

static void make_schedule(schedule *s, const uint32_t key[4]) {
    s->third = key[2];
    s->fourth = key[3];
    for (uint32_t r = 0; r < ROUNDS; r++) {
        s->k0[r] = key[0] + r * 0x9E3779B9u;
        s->k1[r] = key[1] + r * 0xBB67AE85u;
#if defined(__SSE4_1__)
        for (int l = 0; l < W; l++) s->wide[2 * r][l] = s->k0[r], s->wide[2 * r + 1][l] = s->k1[r];
#endif
    }
}

#if defined(__SSE4_1__)
/* One 64-bit lane a counter; a multiplication reads the lower half of a lane and fills all of it. */
#if defined(__AVX512F__)
typedef __m512i vq;
#define MUL _mm512_mul_epu32
#define HIGH(a) _mm512_srli_epi64(a, 32)
#define XOR _mm512_xor_si512
#define XOR3(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
#define SET1 _mm512_set1_epi64
#define ADD _mm512_add_epi64
#define FIRST _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7)
#elif defined(__AVX2__)
typedef __m256i vq;
#define MUL _mm256_mul_epu32
#define HIGH(a) _mm256_srli_epi64(a, 32)
#define XOR _mm256_xor_si256
#define XOR3(a, b, c) XOR(XOR(a, b), c)
#define SET1 _mm256_set1_epi64x
#define ADD _mm256_add_epi64
/* In the order in which one shuffle of two registers within their halves gives 0 ... 7. */
#define FIRST _mm256_setr_epi64x(0, 1, 4, 5)
#define SECOND _mm256_setr_epi64x(2, 3, 6, 7)
#else
typedef __m128i vq;
#define MUL _mm_mul_epu32
#define HIGH(a) _mm_srli_epi64(a, 32)
#define XOR _mm_xor_si128
#define XOR3(a, b, c) XOR(XOR(a, b), c)
#define SET1 _mm_set1_epi64x
#define ADD _mm_add_epi64
#define FIRST _mm_set_epi64x(1, 0)
#define SECOND _mm_set_epi64x(3, 2)
#endif

/* The upper word of the counter is the same for all elements of a draw, so the first two rounds are constants but for one
   multiplication each. */
typedef struct { vq x1, x0, x2, c3; } early;

INLINE early begin(const schedule *s, uint32_t high) {
    uint64_t q = (uint64_t)s->third * M1;
    uint32_t d0 = (uint32_t)(q >> 32) ^ high ^ s->k0[0], d1 = (uint32_t)q;
    uint64_t p = (uint64_t)d0 * M0;
    early e = {SET1(s->fourth ^ s->k1[0]), SET1(d1 ^ s->k0[1]), SET1((uint32_t)(p >> 32) ^ s->k1[1]), SET1((uint32_t)p)};
    return e;
}

/* The words of two registers of counters, each in the lower halves of the lanes. */
INLINE void rounds(const schedule *s, const early *e, vq first, vq second, vq a[4], vq b[4]) {
    const vq m0 = SET1(M0), m1 = SET1(M1);
    vq p0a = MUL(first, m0), p0b = MUL(second, m0);
    vq c1a = MUL(XOR(HIGH(p0a), e->x1), m1), c1b = MUL(XOR(HIGH(p0b), e->x1), m1);
    vq c0a = XOR(HIGH(c1a), e->x0), c0b = XOR(HIGH(c1b), e->x0);
    vq c2a = XOR(p0a, e->x2), c2b = XOR(p0b, e->x2), c3a = e->c3, c3b = e->c3;
#pragma GCC unroll 8
    for (int r = 2; r < ROUNDS; r++) {
        const vq k0 = *(const vq *)s->wide[2 * r], k1 = *(const vq *)s->wide[2 * r + 1];
        vq pa = MUL(c0a, m0), pb = MUL(c0b, m0), qa = MUL(c2a, m1), qb = MUL(c2b, m1);
        c0a = XOR3(HIGH(qa), c1a, k0), c0b = XOR3(HIGH(qb), c1b, k0), c1a = qa, c1b = qb;
        c2a = XOR3(HIGH(pa), c3a, k1), c2b = XOR3(HIGH(pb), c3b, k1), c3a = pa, c3b = pb;
    }
    a[0] = c0a, a[1] = c1a, a[2] = c2a, a[3] = c3a;
    b[0] = c0b, b[1] = c1b, b[2] = c2b, b[3] = c3b;
}
#else
static void block(const schedule *s, uint64_t counter, uint32_t c[4]) {
    c[0] = (uint32_t)counter, c[1] = (uint32_t)(counter >> 32), c[2] = s->third, c[3] = s->fourth;
    for (int r = 0; r < ROUNDS; r++) {
        uint64_t p = (uint64_t)c[0] * M0, q = (uint64_t)c[2] * M1;
        c[0] = (uint32_t)(q >> 32) ^ c[1] ^ s->k0[r], c[1] = (uint32_t)q;
        c[2] = (uint32_t)(p >> 32) ^ c[3] ^ s->k1[r], c[3] = (uint32_t)p;
    }
}

typedef uint64_t early;
#define begin(s, high) ((uint64_t)(high) << 32)
#endif

/* The words of two groups in their order, given the lower words of the groups' first counters. */
INLINE void words(const schedule *s, const early *e, const uint32_t low[2], vu o[UNIT / W]) {
#if defined(__AVX512F__)
    vq a[4], b[4];
    rounds(s, e, ADD(SET1(low[0]), FIRST), ADD(SET1(low[1]), FIRST), a, b);
    const __m512i lower = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    o[0] = (vu)_mm512_permutex2var_epi32(a[0], lower, a[1]);
    o[1] = (vu)_mm512_permutex2var_epi32(a[2], lower, a[3]);
    o[2] = (vu)_mm512_permutex2var_epi32(b[0], lower, b[1]);
    o[3] = (vu)_mm512_permutex2var_epi32(b[2], lower, b[3]);
#elif defined(__AVX2__)
    for (int h = 0; h < 2; h++) {
        vq a[4], b[4];
        rounds(s, e, ADD(SET1(low[h]), FIRST), ADD(SET1(low[h]), SECOND), a, b);
        for (int k = 0; k < 4; k++) o[4 * h + k] = (vu)_mm256_shuffle_ps((__m256)a[k], (__m256)b[k], 0x88);
    }
#elif defined(__SSE4_1__)
    for (int h = 0; h < 4; h++) {
        vq a[4], b[4];
        const vq base = SET1(low[h / 2] + 4 * (h % 2));
        rounds(s, e, ADD(base, FIRST), ADD(base, SECOND), a, b);
        for (int k = 0; k < 4; k++)
            o[8 * (h / 2) + 2 * k + h % 2] = (vu)_mm_shuffle_ps((__m128)a[k], (__m128)b[k], 0x88);
    }
#else
    uint32_t w[UNIT];
    for (int l = 0; l < 16; l++) {
        uint32_t c[4];
        block(s, *e | (low[l / 8] + l % 8), c);
        for (int k = 0; k < 4; k++) w[l / 8 * 32 + 8 * k + l % 8] = c[k];
    }
    memcpy(o, w, sizeof w);
#endif
}

INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

INLINE vu multiply_shift(vu w, uint32_t n) {
#if defined(__AVX512F__)
    const __m512i m = _mm512_set1_epi64(n);
    __m512i e = _mm512_mul_epu32((__m512i)w, m), o = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)w, 32), m);
    return (vu)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(e, 32), o);
#elif defined(__AVX2__)
    const __m256i m = _mm256_set1_epi64x(n);
    __m256i e = _mm256_mul_epu32((__m256i)w, m), o = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)w, 32), m);
    return (vu)_mm256_blend_epi32(_mm256_srli_epi64(e, 32), o, 0xAA);
#elif defined(__SSE4_1__)
    const __m128i m = _mm_set1_epi64x(n);
    __m128i e = _mm_mul_epu32((__m128i)w, m), o = _mm_mul_epu32(_mm_srli_epi64((__m128i)w, 32), m);
    return (vu)_mm_blend_epi16(_mm_srli_epi64(e, 32), o, 0xCC);
#else
    vu r;
    for (int l = 0; l < W; l++) r[l] = (uint32_t)((uint64_t)w[l] * n >> 32);
    return r;
#endif
}

INLINE vf clamp(vf x, vf low, vf high) {
#if defined(__AVX512F__)
    return (vf)_mm512_min_ps(_mm512_max_ps((__m512)x, (__m512)low), (__m512)high);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps(_mm256_max_ps((__m256)x, (__m256)low), (__m256)high);
#elif defined(__SSE4_1__)
    return (vf)_mm_min_ps(_mm_max_ps((__m128)x, (__m128)low), (__m128)high);
#else
    x = SELECT(x < low, low, x);
    return SELECT(x > high, high, x);
#endif
}

/* A bit for each negative lane. */
INLINE uint64_t negative(vf x) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)x);
#elif defined(__AVX2__)
    return (unsigned)_mm256_movemask_ps((__m256)x);
#elif defined(__SSE4_1__)
    return (unsigned)_mm_movemask_ps((__m128)x);
#else
    uint64_t bits = 0;
    for (int l = 0; l < W; l++) bits |= (uint64_t)(((vu)x)[l] >> 31) << l;
    return bits;
#endif
}

/* a where the lane of x is negative, else b. */
INLINE vf if_negative(vf x, vf a, vf b) {
#if defined(__AVX512F__)
    return (vf)_mm512_mask_mov_ps((__m512)b, _mm512_movepi32_mask((__m512i)x), (__m512)a);
#elif defined(__AVX2__)
    return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)x);
#elif defined(__SSE4_1__)
    return (vf)_mm_blendv_ps((__m128)b, (__m128)a, (__m128)x);
#else
    return SELECT((vi)x >> 31, a, b);
#endif
}

#define P(x, c) x = x * at + c
INLINE vf central(vf x, vf *left) {
    vf at = 0.9384765625f - x * x, p = at * 17.243505477905273f + 168.76193237304688f;
    vf q = at * 38.3114013671875f + 155.67552185058594f;
    P(p, 173.4363250732422f); P(p, 39.901187896728516f); P(p, 2.2233541011810303f);
    P(q, 110.02005767822266f); P(q, 20.468231201171875f); P(q, 1.0f);
    *left = at;
    return x * (p / q);
}

INLINE vf logarithm(vf x) {
    vi bits = (vi)x, e = (bits - 0x3F3504F3) >> 23;
    vf at = (vf)(bits - (e << 23)) - 1.0f, z = at * at;
    vf y = at * 7.0376836292e-2f + -1.1514610310e-1f, fe = to_float(e);
    P(y, 1.1676998740e-1f); P(y, -1.2420140846e-1f); P(y, 1.4249322787e-1f); P(y, -1.6668057665e-1f);
    P(y, 2.0000714765e-1f); P(y, -2.4999993993e-1f); P(y, 3.3333331174e-1f);
    return (y * (at * z) + (fe * -2.12194440e-4f - z * 0.5f)) + (at + fe * 0.693359375f);
}

INLINE vf near(vf at) {
    vf p = at * 1.371244707115693e-05f + 0.0039749168790876865f;
    vf q = at * 0.0002457695663906634f + 0.01933625154197216f;
    P(p, 0.126626655459404f); P(p, 1.0042545795440674f); P(p, 2.089851140975952f);
    P(q, 0.2854769825935364f); P(q, 1.0f);
    return p / q;
}

INLINE vf outer(vf at) {
    vf p = at * 5.557767024377824e-10f + 1.3719080698137986e-06f;
    vf q = at * 2.63751997672812e-12f + 2.569385237904953e-08f;
    P(p, 0.0005397485219873488f); P(p, 0.0453430600464344f); P(p, 0.6984266638755798f); P(p, 0.19581817090511322f);
    P(q, 2.3546856027678587e-05f); P(q, 0.004290077835321426f); P(q, 0.1678876429796219f); P(q, 1.0f);
    return SELECT(at <= 22.875f, near(at - 4.0f), p / q);
}

/* The quantile of the words that central() leaves: the outer 1/32. */
INLINE vf tail(vu w) {
    vi s = (vi)w, below = 0x7FFFFFFF - ((s >> 31) ^ s);
    vf z = near(-logarithm(to_float(below) * 2.3283064365386963e-10f + 1.16415321826934814e-10f) - 4.0f);
    return (vf)((vi)z | (s & (int32_t)0x80000000));
}

/* Kinds as the compiler sees them, so that each gets a loop of its own. */
enum { HAS_TAIL = 16, BOUNDED = 32 };

INLINE vf finish(const job *j, int mode, vf z) {
    z = z * j->scale + j->shift;
    return mode & BOUNDED ? clamp(z, SPLAT(j->low), SPLAT(j->high)) : z;
}

INLINE vf value(const job *j, int mode, vu w, uint64_t *left) {
    vf outside;
    switch (mode & 15) {
    case UNIFORM: return finish(j, mode, to_float((vi)(w >> 8)));
    case SCALED: w = multiply_shift(w, j->width) + j->start; /* fall through */
    case NORMAL: {
        vf z = finish(j, mode, central(to_float((vi)w) * 4.65661287307739258e-10f + 2.3283064365386963e-10f, &outside));
        if (!(mode & HAS_TAIL)) return z;
        *left = negative(outside);
        return if_negative(outside, (vf)w, z); /* the word waits in its place for the second pass */
    }
    case NARROW: return finish(j, mode, central(to_float((vi)(w >> 8)) * j->step + j->from, &outside));
    case TAIL: return finish(j, mode, outer(j->depth - logarithm(to_float((vi)(w >> 1)) * j->step + j->from)));
    case BERNOULLI: return (vf)((vi)SPLAT(1.0f) & (vi)(w <= (vu){0} + j->width));
    case INTEGER: return finish(j, mode, to_float((vi)multiply_shift(w, j->width)));
    case SIGN: return (vf)((vi)SPLAT(1.0f) | (vi)(w & 0x80000000u));
    default: return (vf)w;
    }
}

/* Puts the places of the set bits behind each other; four are written whether there or not, since a loop over the
   bits would be mispredicted once for each mask. */
INLINE unsigned places(uint64_t mask, unsigned base, uint16_t *to) {
#if defined(__AVX2__)
    unsigned count = (unsigned)__builtin_popcountll(mask), j = 4;
    for (unsigned l = 0; l < 4; l++, mask = _blsr_u64(mask)) to[l] = (uint16_t)(base + (unsigned)_tzcnt_u64(mask));
#else
    unsigned count = (unsigned)__builtin_popcountll(mask), j = 0;
#endif
    for (; __builtin_expect(mask != 0, 0); mask &= mask - 1) to[j++] = (uint16_t)(base + (unsigned)__builtin_ctzll(mask));
    return count;
}

/* The values of so many pairs of groups, whose counters all have one upper word, each group to a place of its own. */
INLINE void draw(const job *j, const schedule *s, int mode, uint32_t high, const uint32_t *low, unsigned units, float *const *to) {
    uint16_t at[CHUNK + W + 8];
    unsigned outside = 0;
    const early e = begin(s, high);
    for (unsigned u = 0; u < units; u++) {
        vu w[UNIT / W];
        uint64_t mask = 0;
        words(s, &e, low + 2 * u, w);
#pragma GCC unroll 16
        for (int k = 0; k < UNIT / W; k++) {
            uint64_t left = 0;
            vf v = value(j, mode, w[k], &left);
            memcpy(to[2 * u + W * k / GROUP] + W * k % GROUP, &v, sizeof v);
            mask |= left << (W * k);
        }
        if (mode & HAS_TAIL) outside += places(mask, UNIT * u, at + outside);
    }
    if (!(mode & HAS_TAIL)) return;
    memset(at + outside, 0, W * sizeof *at);
    for (unsigned t = 0; t < outside; t += W) {
        vu w;
        float z[W];
        for (int l = 0; l < W; l++) w[l] = ((const word *)to[at[t + l] / GROUP])[at[t + l] % GROUP];
        vf v = finish(j, mode, tail(w));
        memcpy(z, &v, sizeof z);
        for (unsigned l = 0; l < W && t + l < outside; l++) to[at[t + l] / GROUP][at[t + l] % GROUP] = z[l];
    }
}

/* The modes that exist, each in one loop of its own. */
static void draw_mode(const job *j, const schedule *s, int mode, uint32_t high, const uint32_t *low, unsigned units, float *const *to) {
#define CASE(m) case m: draw(j, s, m, high, low, units, to); break
    switch (mode) {
    CASE(UNIFORM); CASE(UNIFORM | BOUNDED);
    CASE(NORMAL | HAS_TAIL); CASE(NORMAL | HAS_TAIL | BOUNDED);
    CASE(SCALED | BOUNDED); CASE(SCALED | HAS_TAIL | BOUNDED);
    CASE(NARROW | BOUNDED); CASE(TAIL | BOUNDED);
    CASE(BERNOULLI); CASE(INTEGER | BOUNDED); CASE(SIGN); CASE(WORDS);
    }
}

static int mode_of(const job *j) {
    switch (j->kind) {
    case UNIFORM: return UNIFORM | (j->bounded ? BOUNDED : 0);
    case NORMAL: return NORMAL | HAS_TAIL | (j->bounded ? BOUNDED : 0);
    case SCALED: {
        /* No word comes near the outer 1/32 where both ends stay away from it. */
        uint64_t bottom = j->start ^ 0x80000000u, top = bottom + j->width, edge = (1u << 26) + 1024;
        int inside = bottom > edge && top < (1ull << 32) - edge;
        return SCALED | BOUNDED | (inside ? 0 : HAS_TAIL);
    }
    case NARROW: case TAIL: case INTEGER: return j->kind | BOUNDED;
    default: return j->kind;
    }
}

/* Rounds to nearest, ties to even, in integers: infinities stay, no value here is a NaN. */
INLINE uint16_t to_half(float value) {
    uint32_t bits, sign, mantissa, rest, half;
    memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000u, bits &= 0x7FFFFFFFu;
    if (bits >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u);
    if (bits < 0x33000001u) return (uint16_t)sign;
    int exponent = (int)(bits >> 23) - 112, shift = exponent > 0 ? 13 : 14 - exponent;
    mantissa = exponent > 0 ? bits & 0x7FFFFFu : (bits & 0x7FFFFFu) | 0x800000u;
    half = (exponent > 0 ? (uint32_t)exponent << 10 : 0) + (mantissa >> shift);
    rest = mantissa & ((1u << shift) - 1);
    half += rest > 1u << (shift - 1) || (rest == 1u << (shift - 1) && half & 1);
    return (uint16_t)(sign | half);
}

INLINE uint16_t to_bfloat(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

static void store_bfloats(uint16_t *to, const float *from, uint64_t n) {
    uint64_t i = 0;
#if defined(__AVX2__)
    for (; i + 16 <= n; i += 16) {
        __m256i x = _mm256_loadu_si256((const __m256i *)(from + i)), y = _mm256_loadu_si256((const __m256i *)(from + i + 8));
        const __m256i half = _mm256_set1_epi32(0x7FFF), one = _mm256_set1_epi32(1);
        x = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(x, half), _mm256_and_si256(_mm256_srli_epi32(x, 16), one)), 16);
        y = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(y, half), _mm256_and_si256(_mm256_srli_epi32(y, 16), one)), 16);
        _mm256_storeu_si256((__m256i *)(to + i), _mm256_permute4x64_epi64(_mm256_packus_epi32(x, y), 0xD8));
    }
#endif
    for (; i < n; i++) to[i] = to_bfloat(from[i]);
}

static void store_halves(uint16_t *to, const float *from, uint64_t n) {
    uint64_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
    for (; i < n; i++) to[i] = to_half(from[i]);
}

INLINE void put(const job *j, char *to, int64_t place, float value) {
    switch (j->dtype) {
    case FLOAT32: ((float *)to)[place] = value; break;
    case FLOAT64: ((double *)to)[place] = value; break;
    case BFLOAT16: ((uint16_t *)to)[place] = to_bfloat(value); break;
    default: ((uint16_t *)to)[place] = to_half(value);
    }
}

static void store_floats(float *to, const float *from, uint64_t n) {
    uint64_t i = 0;
    for (; i + W <= n; i += W) memcpy(to + i, from + i, 4 * W);
    for (; i < n; i++) to[i] = from[i];
}

static void store(const job *j, char *to, const float *from, uint64_t n) {
    if (j->leap[0] != 1) {
        for (uint64_t i = 0; i < n; i++) put(j, to, (int64_t)i * j->leap[0], from[i]);
        return;
    }
    switch (j->dtype) {
    case FLOAT32: store_floats((float *)to, from, n); break;
    case FLOAT64: for (uint64_t i = 0; i < n; i++) ((double *)to)[i] = from[i]; break;
    case BFLOAT16: store_bfloats((uint16_t *)to, from, n); break;
    default: store_halves((uint16_t *)to, from, n);
    }
}

/* Where a box stands: its next element, as flat index of the whole and as place in memory. */
typedef struct { uint64_t at[MAX_AXES], index; int64_t place; } cursor;

static void seek(cursor *c, const job *j, uint64_t i) {
    c->index = j->first, c->place = 0;
    for (int a = 0; a < j->axes; a++, i /= j->size[a - 1]) {
        c->at[a] = i % j->size[a];
        c->index += c->at[a] * j->stride[a], c->place += (int64_t)c->at[a] * j->leap[a];
    }
}

/* Moves n elements on, not beyond the end of the innermost axis. */
static void move(cursor *c, const job *j, uint64_t n) {
    int a = 0;
    c->at[0] += n, c->index += n * j->stride[0], c->place += (int64_t)n * j->leap[0];
    for (; c->at[a] == j->size[a] && a + 1 < j->axes; a++) {
        c->index += j->stride[a + 1] - c->at[a] * j->stride[a];
        c->place += j->leap[a + 1] - (int64_t)c->at[a] * j->leap[a];
        c->at[a] = 0, c->at[a + 1]++;
    }
}

/* Elements of one row that lie in a chunk: where in the chunk, how many, and where they go. */
typedef struct { unsigned from, take; int64_t place; } part;

/* A chunk: groups, of one row or of several, so that their tails are done together. */
typedef struct {
    float buffer[CHUNK] __attribute__((aligned(64)));
    float *to[CHUNK / GROUP];    /* where a group's values go: to their own place if it is whole and plain, else to the buffer */
    uint32_t low[CHUNK / GROUP]; /* the lower word of its first counter */
    part parts[CHUNK / GROUP];
    unsigned groups, count;
} chunk;

INLINE uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Moves the cursor over the elements of its row that still fit into the chunk, and says how many. */
static unsigned gather(chunk *h, cursor *c, const job *j, uint64_t left, int plain) {
    unsigned skip = c->index % GROUP, from = GROUP * h->groups + skip, first = h->groups;
    left = least(least(left, j->size[0] - c->at[0]), SPAN - c->index % SPAN);
    part *p = h->parts + h->count++;
    *p = (part){from, (unsigned)least(left, CHUNK - from), c->place};
    unsigned end = from + p->take, count = (skip + p->take + GROUP - 1) / GROUP;
    float *to = plain ? (float *)j->out + c->place - skip : h->buffer + GROUP * first;
    for (unsigned g = 0; g < count; g++) h->to[first + g] = to + GROUP * g;
    for (unsigned g = 0; g < count; g++) h->low[first + g] = (uint32_t)(c->index / GROUP * 8) + 8 * g;
    h->groups += count;
    if (skip) h->to[first] = h->buffer + GROUP * first;
    if (end % GROUP) h->to[h->groups - 1] = h->buffer + GROUP * (h->groups - 1);
    move(c, j, p->take);
    return p->take;
}

/* Brings near, while values are computed, the memory where all of them will be put at once. */
static void await_store(const char *to, uint64_t bytes) {
    for (uint64_t b = 0; b < bytes; b += 64) __builtin_prefetch(to + b, 1);
}

/* Puts a stretch of the buffer to where the part goes. */
static void settle(const chunk *h, const job *j, const part *p, unsigned from, unsigned end) {
    int64_t place = p->place + (int64_t)(from - p->from) * j->leap[0];
    store(j, j->out + place * (int64_t)ELEMENT_SIZE[j->dtype], h->buffer + from, end - from);
}

static void settle_all(const chunk *h, const job *j, int plain) {
    for (const part *p = h->parts; p < h->parts + h->count; p++) {
        unsigned end = p->from + p->take, inner = (p->from + GROUP - 1) / GROUP * GROUP, outer = end / GROUP * GROUP;
        if (!plain || inner > outer) settle(h, j, p, p->from, end);
        else settle(h, j, p, p->from, inner), settle(h, j, p, outer, end);
    }
}

void LANES_NAME(const job *j, uint64_t begin, uint64_t end) {
    const int mode = mode_of(j), dense = j->leap[0] == 1, plain = dense && j->dtype == FLOAT32;
    const unsigned bytes = ELEMENT_SIZE[j->dtype];
    chunk h;
    schedule s;
    cursor c;
    make_schedule(&s, j->key);
    seek(&c, j, begin);
    while (begin < end) {
        const uint64_t high = c.index / SPAN;
        h.groups = h.count = 0;
        do begin += gather(&h, &c, j, end - begin, plain);
        while (begin < end && h.groups < CHUNK / GROUP && c.index / SPAN == high);
        if (dense && !plain) for (unsigned k = 0; k < h.count; k++) await_store(j->out + h.parts[k].place * bytes, h.parts[k].take * bytes);
        if (h.groups % 2) h.low[h.groups] = 0, h.to[h.groups] = h.buffer + GROUP * h.groups;
        draw_mode(j, &s, mode, (uint32_t)high, h.low, (h.groups + 1) / 2, h.to);
        settle_all(&h, j, plain);
    }
}
