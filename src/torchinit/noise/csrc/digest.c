/* Digests: two sums over the elements of a box, each a mix of the element's place and its bits.
   plans/digest.py is the definition, in torch operations; this is the same, faster. It keeps nothing and writes nothing. */
#include <stdint.h>
#include <string.h>

#define MAX_AXES 6
#define BLOCK 512
#define STEP 0x9E3779B97F4A7C15u /* 2**64 over the golden ratio: multiples of it lie far apart */

typedef struct {
    const char *data;        /* first element of the box */
    uint64_t first;          /* its flat index in the whole tensor */
    uint64_t width;          /* bytes of an element: 1, 2, 4 or 8 */
    uint64_t axes;
    uint64_t size[MAX_AXES];   /* innermost axis first; its neighbours are neighbours in the whole tensor, too */
    uint64_t stride[MAX_AXES]; /* in the whole tensor */
    int64_t leap[MAX_AXES];    /* in memory, in elements */
} box;

#define INLINE static inline __attribute__((always_inline))

INLINE uint64_t load(const char *at, int width) {
    uint8_t one; uint16_t two; uint32_t four; uint64_t eight;
    switch (width) {
    case 1: memcpy(&one, at, 1); return one;
    case 2: memcpy(&two, at, 2); return two;
    case 4: memcpy(&four, at, 4); return four;
    default: memcpy(&eight, at, 8); return eight;
    }
}

INLINE void mix(const uint64_t *words, uint64_t place, uint64_t n, uint64_t sums[2]) {
    uint64_t a = 0, b = 0, h = (place + 1) * STEP;
    for (uint64_t i = 0; i < n; i++, h += STEP) {
        uint64_t x = words[i] ^ h, y;
        x ^= x >> 33; x *= 0xFF51AFD7ED558CCDu; x ^= x >> 33; x *= 0xC4CEB9FE1A85EC53u; x ^= x >> 33;
        y = x + h;
        y ^= y >> 30; y *= 0xBF58476D1CE4E5B9u; y ^= y >> 27; y *= 0x94D049BB133111EBu; y ^= y >> 31;
        a += x; b += y;
    }
    sums[0] += a; sums[1] += b;
}

/* In two loops, since compilers make vectors of each but not of both in one. */
INLINE void row(const char *at, int width, int64_t leap, uint64_t place, uint64_t n, uint64_t sums[2]) {
    uint64_t words[BLOCK];
    for (uint64_t done = 0, now; done < n; done += now) {
        now = n - done < BLOCK ? n - done : BLOCK;
        for (uint64_t i = 0; i < now; i++) words[i] = load(at + (int64_t)(done + i) * leap * width, width);
        mix(words, place + done, now, sums);
    }
}

INLINE void walk(const box *j, int width, uint64_t begin, uint64_t end, uint64_t sums[2]) {
    for (uint64_t i = begin; i < end;) {
        uint64_t along = i % j->size[0], rest = i / j->size[0], n = j->size[0] - along, place = j->first + along;
        int64_t offset = (int64_t)along * j->leap[0];
        if (n > end - i) n = end - i;
        for (uint64_t a = 1; a < j->axes; a++) {
            uint64_t at = rest % j->size[a];
            rest /= j->size[a];
            place += at * j->stride[a];
            offset += (int64_t)at * j->leap[a];
        }
        const char *from = j->data + offset * width;
        if (j->leap[0] == 1) row(from, width, 1, place, n, sums);
        else row(from, width, j->leap[0], place, n, sums);
        i += n;
    }
}

INLINE void widths(const box *j, uint64_t begin, uint64_t end, uint64_t sums[2]) {
    switch (j->width) {
    case 1: walk(j, 1, begin, end, sums); break;
    case 2: walk(j, 2, begin, end, sums); break;
    case 4: walk(j, 4, begin, end, sums); break;
    default: walk(j, 8, begin, end, sums);
    }
}

/* Adds to `sums` those of the elements begin <= i < end of the box, counted in row-major order within it.
   The number in the name is the version of the digest. */
#if defined(__x86_64__)
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl")))
static void widths_avx512(const box *j, uint64_t begin, uint64_t end, uint64_t sums[2]) { widths(j, begin, end, sums); }
__attribute__((target("avx2")))
static void widths_avx2(const box *j, uint64_t begin, uint64_t end, uint64_t sums[2]) { widths(j, begin, end, sums); }
#endif

void torchinit_digest_1(const box *j, uint64_t begin, uint64_t end, uint64_t sums[2]) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        widths_avx512(j, begin, end, sums);
    else if (__builtin_cpu_supports("avx2")) widths_avx2(j, begin, end, sums);
    else
#endif
    widths(j, begin, end, sums);
}

/* The sums of n boxes of one axis each, in one call: from Python a call costs more than a small tensor. */
void torchinit_digests_1(const box *j, uint64_t n, uint64_t *sums) {
    for (uint64_t i = 0; i < n; i++) torchinit_digest_1(j + i, 0, j[i].size[0], sums + 2 * i);
}
