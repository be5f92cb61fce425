/* The kernel without Python: draws a fixed set of jobs and prints a digest of every byte, or draws one large job so that
   its instructions can be counted. Built and run by builds.py, in every way that a compiler and its checkers offer.

   harness SET             digests of the suite with instruction set number SET
   harness SET KIND N      draws N elements of KIND: uniform, normal, truncated2, truncated3; N = 0 for the rest of the program */
#include "kernel.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int torchinit_fill(const job *jobs, int n, int threads, int set, int check);
int torchinit_can_run(int set);
uint64_t torchinit_sums(const stretch *of, uint64_t n, int threads, int set, shifted *s);
uint64_t torchinit_largest(const char *data, int width, uint64_t n, int threads, int set);
void torchinit_copy(char *to, const char *from, uint64_t bytes, int threads, int set);

struct box { /* as in digest.c */
    const char *data;
    uint64_t first, width, axes, size[MAX_AXES], stride[MAX_AXES];
    int64_t leap[MAX_AXES];
};
void torchinit_digest_1(const struct box *b, uint64_t begin, uint64_t end, uint64_t lanes[2]);

static job make(int kind, int dtype, void *out, uint64_t first, uint64_t n) {
    job j = {.out = out, .first = first, .count = n, .key = {1, 2, 3, 4}, .dtype = dtype, .axes = 1, .kind = kind};
    j.size[0] = n, j.stride[0] = 1, j.leap[0] = 1;
    j.scale = 0.5f, j.shift = 0.25f, j.low = -INFINITY, j.high = INFINITY;
    switch (kind) {
    case UNIFORM: j.scale = 5.9604644775390625e-08f, j.shift = 0, j.low = 0, j.high = 0.99f, j.bounded = 1; break;
    case SCALED: j.width = 4099549236u, j.start = 2245192678u, j.low = -0.75f, j.high = 1.25f, j.bounded = 1; break;
    case NARROW: j.from = 0.5f, j.step = 1e-9f; break;
    case TAIL: j.from = 2.3283064e-10f, j.step = 4.656613e-10f, j.depth = 15.064998f; break;
    case BERNOULLI: case INTEGER: j.width = 1u << 20; break;
    }
    return j;
}

/* Every kind and dtype, in sizes around the kernel's units, from odd places, in rows long, short and spread out. */
static uint64_t suite(int set) {
    static const unsigned bytes[] = {4, 8, 2, 2};
    uint64_t digest = 1469598103934665603u;
    for (int kind = UNIFORM; kind <= WORDS; kind++)
        for (int dtype = FLOAT32; dtype <= FLOAT16; dtype++)
            for (int n = 1; n < 3000; n = n * 3 + 1)
                for (int axes = 1; axes < 4; axes++) {
                    uint64_t rows = axes == 1 ? 1 : 5, size = (uint64_t)n * rows * (axes == 3 ? 2 : 1) * bytes[dtype];
                    unsigned char *out = calloc(size, 1); /* exactly as large, so that a checker sees one byte too many */
                    job j = make(kind, dtype, out, 17 * (uint64_t)n, n * rows);
                    if (kind == WORDS && dtype != FLOAT32) { free(out); continue; }
                    if (axes > 1) j.axes = 2, j.size[0] = n, j.size[1] = rows, j.stride[1] = 3 * (uint64_t)n, j.leap[1] = n;
                    if (axes == 3) j.leap[0] = 2, j.leap[1] = 2 * n;
                    if (axes == 3 && n > 1) size -= bytes[dtype];
                    torchinit_fill(&j, 1, 1, set, 1);
                    for (uint64_t i = 0; i < size; i++) digest = (digest ^ out[i]) * 1099511628211u;
                    free(out);
                }
    return digest;
}

/* What the values of each dtype add up to, in sizes around the kernel's units and with threads: the totals, which each
   instruction set rounds in its own way, must not depend on threads; the rest, and the digest of the bits, goes in. */
static uint64_t added(int set) {
    uint64_t digest = 1469598103934665603u, sizes[] = {1, 3, 16, 100, 4099, 400001};
    for (int dtype = FLOAT32; dtype <= FLOAT16; dtype++)
        for (int k = 0; k < 6; k++) {
            uint64_t n = sizes[k], lanes[2] = {0, 0};
            double found[4], shift;
            sums alone, shared;
            shifted one, three;
            char *out = malloc(n * ELEMENT_SIZE[dtype]);
            stretch whole = {out, n, dtype};
            job j = make(NORMAL, dtype, out, 7, n);
            torchinit_fill(&j, 1, 1, set, 0);
            torchinit_sums(&whole, 1, 1, set, &one);
            torchinit_sums(&whole, 1, 3, set, &three);
            alone = one.sums, shared = three.sums, shift = one.shift;
            if (memcmp(&alone, &shared, sizeof alone)) exit(4);
            struct box b = {out, 7, ELEMENT_SIZE[dtype], 1, {n}, {1}, {1}};
            torchinit_digest_1(&b, 0, n, lanes);
            found[0] = shift, found[1] = alone.low, found[2] = alone.high, memcpy(found + 3, lanes, sizeof *lanes);
            for (unsigned i = 0; i < sizeof found; i++) digest = (digest ^ ((unsigned char *)found)[i]) * 1099511628211u;
            free(out);
        }
    return digest;
}

/* The largest words of every width in copies of noise, from and to odd places, alone and with threads. */
static uint64_t swept(int set) {
    uint64_t digest = 1469598103934665603u, sizes[] = {0, 1, 31, 200, 4099, 600001};
    for (int k = 0; k < 6; k++)
        for (int odd = 0; odd < 3; odd++) {
            uint64_t n = sizes[k];
            char *from = malloc(n + odd + 1), *to = malloc(n + 2 * odd + 1);
            for (uint64_t i = 0; i < n; i++) from[odd + i] = (char)(i * 2654435761u >> 24);
            torchinit_copy(to + 2 * odd, from + odd, n, 1 + odd, set);
            if (memcmp(to + 2 * odd, from + odd, n)) exit(5);
            for (int width = 1; width <= 8 && n; width *= 2)
                digest = (digest ^ torchinit_largest(to + 2 * odd, width, n / width, 1 + odd, set)) * 1099511628211u;
            free(from), free(to);
        }
    return digest;
}

/* Two jobs large enough that threads share them. */
static uint64_t together(int set) {
    uint64_t n = 400000, digest = 1469598103934665603u;
    float *out = malloc(2 * n * sizeof *out);
    job jobs[] = {make(NORMAL, FLOAT32, out, 0, n), make(UNIFORM, FLOAT32, out + n, 5, n)};
    torchinit_fill(jobs, 2, 3, set, 1);
    for (uint64_t i = 0; i < 2 * n * sizeof *out; i++) digest = (digest ^ ((unsigned char *)out)[i]) * 1099511628211u;
    free(out);
    return digest;
}

int main(int count, char **arguments) {
    int set = count > 1 ? atoi(arguments[1]) : 0;
    if (!torchinit_can_run(set)) return 3;
    if (count < 4) {
        unsigned long long drawn = suite(set), shared = together(set), summed = added(set), passed = swept(set);
        printf("%016llx %016llx %016llx %016llx\n", drawn, shared, summed, passed);
        return 0;
    }
    uint64_t n = strtoull(arguments[3], NULL, 10);
    char first = arguments[2][0], last = arguments[2][strlen(arguments[2]) - 1];
    float *out = calloc(n ? n : 1, sizeof *out);
    job j = make(first == 'u' ? UNIFORM : first == 'n' ? NORMAL : SCALED, FLOAT32, out, 0, n);
    if (first == 'u') j.bounded = 0;
    /* The cells between -3 and 3, and between -2 and 2 standard deviations. */
    if (last == '3') j.width = 4283371798u, j.start = 5797749u + 2147483648u;
    if (last == '2') j.width = 4099549236u, j.start = 97709030u + 2147483648u;
    if (n) torchinit_fill(&j, 1, 1, set, 1);
    printf("%g\n", n ? out[n / 2] : 0.0);
    free(out);
    return 0;
}
