/* The job that Python hands to the kernel, and what the parts of the kernel know of each other.
   The layout is packed by engines/kernel.py; TORCHINIT_ABI changes with it. */
#ifndef TORCHINIT_KERNEL_H
#define TORCHINIT_KERNEL_H
#include <stdint.h>

#define TORCHINIT_ABI "torchinit-stream-1/abi-7"
#define MAX_AXES 6

enum kind { UNIFORM, NORMAL, SCALED, NARROW, TAIL, BERNOULLI, INTEGER, SIGN, WORDS };
enum dtype { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

typedef struct {
    char *out;               /* first element of the box */
    uint64_t first;          /* its flat index in the whole tensor */
    uint64_t count;          /* elements in the box */
    uint32_t key[4];
    int32_t dtype, axes;
    int32_t kind;            /* the draw, as in distributions.py */
    uint32_t width, start, bounded;
    float scale, shift, low, high, from, step, depth;
    int32_t unused;
    uint64_t size[MAX_AXES];   /* innermost axis first; its neighbours are neighbours in the whole tensor, too */
    uint64_t stride[MAX_AXES]; /* in the whole tensor */
    int64_t leap[MAX_AXES];    /* in memory, in elements */
} job;

/* Draws the elements begin <= i < end of a job's box, counted in row-major order. One function for each instruction set. */
typedef void piece_fn(const job *j, uint64_t begin, uint64_t end);

/* Of the values of a tensor or of a piece of it: the sum of their distances from a number, the sum of those squared, the
   least and the greatest; both are NaN if any value is. */
typedef struct { double total, square, low, high; } sums;
typedef struct { double shift; sums sums; } shifted;
typedef struct { const char *data; uint64_t count; int64_t dtype; } stretch; /* values that lie behind each other */
typedef void sums_fn(const char *data, int dtype, uint64_t n, double shift, sums *s);

/* The greatest of n words of so many bytes, without their sign bits: of numbers of any binary format the largest magnitude,
   where infinity is larger than all numbers, and a NaN larger than infinity. The words may lie anywhere. */
typedef uint64_t largest_fn(const char *data, int width, uint64_t n);

/* Copies between stretches that do not overlap. */
typedef void copy_fn(char *to, const char *from, uint64_t n);

static const unsigned ELEMENT_SIZE[] = {4, 8, 2, 2};
#endif
