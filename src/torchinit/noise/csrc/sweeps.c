/* Passes over a stretch of memory as fast as memory is, for the instruction set that this file is compiled for: how large its
   numbers get, and a copy of it. LARGEST_NAME and COPY_NAME are the functions it exports. */
#include "kernel.h"
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

/* The two halves are gone through side by side: the processor fetches ahead in each, and while it waits for the address of a
   page in one, the other goes on. A look takes three quarters of the time by that, and so does a copy where the pages of its
   target are small. Four places at once are a little faster still, but not where source and target lie alike in their pages. */
#define LARGEST(bits)                                                                                                  \
    static uint64_t largest##bits(const char *data, uint64_t n) {                                                      \
        typedef uint##bits##_t word __attribute__((aligned(1)));                                                       \
        const word *a = (const word *)data, *b = a + n / 2;                                                            \
        const uint##bits##_t magnitude = (uint##bits##_t)~(uint##bits##_t)0 >> 1;                                      \
        uint##bits##_t x = n % 2 ? a[n - 1] & magnitude : 0, y = 0;                                                    \
        for (uint64_t i = 0; i < n / 2; i++) {                                                                         \
            uint##bits##_t u = a[i] & magnitude, v = b[i] & magnitude;                                                 \
            x = u > x ? u : x, y = v > y ? v : y;                                                                      \
        }                                                                                                              \
        return x > y ? x : y;                                                                                          \
    }
LARGEST(8)
LARGEST(16)
LARGEST(32)
LARGEST(64)

uint64_t LARGEST_NAME(const char *data, int width, uint64_t n) {
    switch (width) {
    case 1: return largest8(data, n);
    case 2: return largest16(data, n);
    case 4: return largest32(data, n);
    default: return largest64(data, n);
    }
}

#define LINE 64 /* bytes */
#if defined(__AVX512F__)
#define STREAM_LINE(to, from) _mm512_stream_si512((__m512i *)(to), _mm512_loadu_si512(from))
#elif defined(__AVX2__)
#define STREAM(to, from) _mm256_stream_si256((__m256i *)(to), _mm256_loadu_si256((const __m256i *)(from)))
#define STREAM_LINE(to, from) STREAM(to, from), STREAM(to + 32, from + 32)
#elif defined(__SSE2__)
#define STREAM(to, from) _mm_stream_si128((__m128i *)(to), _mm_loadu_si128((const __m128i *)(from)))
#define STREAM_LINE(to, from) STREAM(to, from), STREAM(to + 16, from + 16), STREAM(to + 32, from + 32), STREAM(to + 48, from + 48)
#endif

/* Past the caches, where that can be told: else each line of the target is read before it is written over. */
void COPY_NAME(char *to, const char *from, uint64_t n) {
#if defined(STREAM_LINE)
    uint64_t head = -(uintptr_t)to % LINE;
    if (head > n) head = n;
    memcpy(to, from, head);
    to += head, from += head, n -= head;
    uint64_t half = n / (2 * LINE) * LINE;
    for (uint64_t i = 0; i < half; i += LINE) {
        STREAM_LINE((to + i), (from + i));
        STREAM_LINE((to + half + i), (from + half + i));
    }
    _mm_sfence();
    to += 2 * half, from += 2 * half, n -= 2 * half;
#endif
    memcpy(to, from, n);
}
