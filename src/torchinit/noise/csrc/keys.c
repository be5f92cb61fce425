/* The jobs of tensors that are simple and wholly here, each under the key that BLAKE2b makes of a head, the same for all, and
   its name: RFC 7693, of 128 bits, without a key of its own. What Python's hashlib does, for a thousand names in one call. */
#include "kernel.h"
#include <string.h>

#define BLOCK 128
#define ROUNDS 12
#define SEPARATOR '\xff' /* a byte that no text has in UTF-8 */

static const uint64_t START[8] = {
    0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
    0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
};
static const uint8_t ORDER[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

#define TURN(x, bits) ((x) >> (bits) | (x) << (64 - (bits)))
#define MIX(a, b, c, d, x, y) do { \
    v[a] += v[b] + m[x]; v[d] = TURN(v[d] ^ v[a], 32); v[c] += v[d]; v[b] = TURN(v[b] ^ v[c], 24); \
    v[a] += v[b] + m[y]; v[d] = TURN(v[d] ^ v[a], 16); v[c] += v[d]; v[b] = TURN(v[b] ^ v[c], 63); } while (0)

static void compress(uint64_t state[8], const char block[BLOCK], uint64_t bytes_so_far, int is_last) {
    uint64_t v[16], m[16];
    memcpy(m, block, BLOCK);
    for (int i = 0; i < 8; i++) v[i] = state[i], v[i + 8] = START[i];
    v[12] ^= bytes_so_far;
    if (is_last) v[14] = ~v[14];
#pragma GCC unroll 12
    for (int round = 0; round < ROUNDS; round++) {
        const uint8_t *o = ORDER[round % 10];
        MIX(0, 4, 8, 12, o[0], o[1]); MIX(1, 5, 9, 13, o[2], o[3]); MIX(2, 6, 10, 14, o[4], o[5]); MIX(3, 7, 11, 15, o[6], o[7]);
        MIX(0, 5, 10, 15, o[8], o[9]); MIX(1, 6, 11, 12, o[10], o[11]); MIX(2, 7, 8, 13, o[12], o[13]); MIX(3, 4, 9, 14, o[14], o[15]);
    }
    for (int i = 0; i < 8; i++) state[i] ^= v[i] ^ v[i + 8];
}

/* A head is shorter than a block. */
static void derive(const char *head, uint64_t used, const char *name, uint64_t left, uint32_t key[4]) {
    uint64_t state[8], bytes = 0;
    char block[BLOCK] = {0};
    memcpy(state, START, sizeof state);
    state[0] ^= 0x01010000 ^ 16; /* of 16 bytes, in one sequence */
    memcpy(block, head, used);
    for (;;) {
        uint64_t here = left < BLOCK - used ? left : BLOCK - used;
        memcpy(block + used, name, here);
        bytes += used + here, name += here, left -= here;
        compress(state, block, bytes, !left);
        if (!left) break;
        memset(block, 0, BLOCK);
        used = 0;
    }
    memcpy(key, state, 16);
}

/* Makes the jobs of n tensors, each like one but for address, count and key, and returns how many there are: one with no elements
   has none. The numbers are all addresses, then all counts; the names follow each other, each with the separator behind it. */
uint64_t torchinit_jobs(const char *head, uint64_t bytes, const char *names, const uint64_t *numbers, uint64_t n,
                        const job *like, job *jobs) {
    uint64_t made = 0;
    for (uint64_t i = 0; i < n; i++) {
        const char *name = names;
        names = memchr(name, SEPARATOR, (size_t)-1 >> 1);
        if (numbers[n + i]) {
            job *j = jobs + made++;
            *j = *like;
            j->out = (char *)numbers[i];
            j->count = j->size[0] = numbers[n + i];
            derive(head, bytes, name, (uint64_t)(names - name), j->key);
        }
        names++;
    }
    return made;
}
