/* The driver: takes a batch of jobs, checks that they can be written, and shares them out among threads; adds up, looks
   through and copies tensors.
   Threads live for one call. Nothing is kept between calls, so a fork at any time is harmless. */
#include "kernel.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PIECE 65536u          /* elements that a thread takes at once */
#define ELEMENTS_A_THREAD 131072u /* starting a thread costs about what these do */
#define STRETCH 1048576u      /* bytes that a thread looks through or copies at once */
#define MAX_THREADS 256
#define FEW_PIECES 16         /* whose sums lie on the stack */

#define DECLARE(set) piece_fn torchinit_##set; sums_fn torchinit_sums_##set; \
    largest_fn torchinit_largest_##set; copy_fn torchinit_copy_##set
#define SET(set) {#set, torchinit_##set, torchinit_sums_##set, torchinit_largest_##set, torchinit_copy_##set}
DECLARE(plain);
#if defined(__x86_64__)
DECLARE(sse4);
DECLARE(avx2);
DECLARE(avx512);
#endif

static const struct { const char *name; piece_fn *fn; sums_fn *sums; largest_fn *largest; copy_fn *copy; } SETS[] = {
    SET(plain),
#if defined(__x86_64__)
    SET(sse4), SET(avx2), SET(avx512),
#endif
};
#define COUNT (int)(sizeof SETS / sizeof *SETS)

static int can_run(int set) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    switch (set) {
    case 1: return __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("popcnt");
    case 2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt") && can_run(1);
    case 3: return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && can_run(2);
    }
#endif
    return set == 0;
}

const char *torchinit_abi(void) { return TORCHINIT_ABI; }
unsigned torchinit_job_size(void) { return sizeof(job); }
const char *torchinit_set_name(int set) { return set >= 0 && set < COUNT ? SETS[set].name : NULL; }
int torchinit_can_run(int set) { return set >= 0 && set < COUNT && can_run(set); }

/* Whoever loaded us may have set flush-to-zero or another rounding; the stream knows neither. */
static uint64_t float_mode_set(void) {
#if defined(__x86_64__)
    unsigned old = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return old;
#elif defined(__aarch64__)
    uint64_t old, standard = 0;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(standard));
    return old;
#else
    return 0;
#endif
}

static void float_mode_restore(uint64_t old) {
#if defined(__x86_64__)
    _mm_setcsr((unsigned)old);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" : : "r"(old));
#else
    (void)old;
#endif
}

typedef struct {
    const job *jobs;
    uint64_t n, pieces, next;
    uint64_t *before; /* pieces of all earlier jobs, for each job */
    piece_fn *fn;
} batch;

static uint64_t pieces_of(uint64_t elements) { return elements / PIECE + (elements % PIECE != 0); }

static void *work(void *argument) {
    batch *b = argument;
    uint64_t mode = float_mode_set(), piece, at = 0;
    while ((piece = __atomic_fetch_add(&b->next, 1, __ATOMIC_RELAXED)) < b->pieces) {
        /* Pieces come in order, so the job of the last one is at or before this one's. */
        while (at + 1 < b->n && b->before[at + 1] <= piece) at++;
        uint64_t begin = (piece - b->before[at]) * PIECE, left = b->jobs[at].count - begin;
        b->fn(b->jobs + at, begin, begin + (left < PIECE ? left : PIECE));
    }
    float_mode_restore(mode);
    return NULL;
}

static void work_alone(const job *jobs, uint64_t n, piece_fn *fn) {
    uint64_t mode = float_mode_set();
    for (uint64_t i = 0; i < n; i++) fn(jobs + i, 0, jobs[i].count);
    float_mode_restore(mode);
}

/* How many threads are worth their start for so many elements. */
static int worth(uint64_t elements, int threads) {
    uint64_t most = elements / ELEMENTS_A_THREAD;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    return most < (uint64_t)threads ? (int)most : threads;
}

static void together(void *(*work)(void *), void *shared, int threads) {
    pthread_t others[MAX_THREADS];
    int started = 0;
    sigset_t all, old;
    if (threads > 1) {
        /* Signals are for the threads that the program knows. */
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        while (started < threads - 1 && !pthread_create(others + started, NULL, work, shared)) started++;
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    work(shared);
    while (started) pthread_join(others[--started], NULL);
}

static void span(const job *j, char **first, char **end) {
    int64_t reach = 1;
    for (int a = 0; a < j->axes; a++) reach += (int64_t)(j->size[a] - 1) * j->leap[a];
    *first = j->out, *end = j->out + reach * (int64_t)ELEMENT_SIZE[j->dtype];
}

typedef struct { char *first, *end; } extent;

static int by_first(const void *a, const void *b) {
    const extent *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

/* Whether no two jobs reach into the same stretch of memory, so that their order does not matter. */
static int apart(const job *jobs, uint64_t n) {
    extent *e = malloc(n * sizeof *e);
    int answer = e != NULL;
    if (!e) return 0;
    for (uint64_t i = 0; i < n; i++) span(jobs + i, &e[i].first, &e[i].end);
    qsort(e, n, sizeof *e, by_first);
    for (uint64_t i = 1; i < n && answer; i++) answer = e[i - 1].end <= e[i].first;
    free(e);
    return answer;
}

/* The first byte of a job's memory, then its last one, then those of the next job. */
static char *edge(const job *jobs, uint64_t number) {
    char *first, *end;
    span(jobs + number / 2, &first, &end);
    return number % 2 ? end - 1 : first;
}

/* Memory that is mapped for reading alone would end the process. So the system is asked to write the edges of all jobs; it
   stops where it cannot, and then they are put back. One call for many, since a call costs as much as a small draw. */
static uint64_t first_unwritable(const job *jobs, uint64_t n) {
    enum { MANY = 512 };
    struct iovec to[MANY];
    uint64_t written = 0, edges = 2 * n;
    char *kept = malloc(edges);
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    if (!kept || zero < 0) written = edges; /* nothing can be told */
    while (written < edges) {
        int m = edges - written < MANY ? (int)(edges - written) : MANY;
        for (int k = 0; k < m; k++) {
            to[k] = (struct iovec){edge(jobs, written + k), 1};
            kept[written + k] = *(char *)to[k].iov_base;
        }
        ssize_t done = readv(zero, to, m);
        if (done < 0) done = errno == EFAULT ? 0 : m;
        written += (uint64_t)done;
        if (done < m) break;
    }
    if (written < edges) for (uint64_t k = written; k--;) *edge(jobs, k) = kept[k];
    if (zero >= 0) close(zero);
    free(kept);
    return written / 2;
}

static void run(const job *jobs, uint64_t n, int threads, piece_fn *fn) {
    batch b = {jobs, n, 0, 0, NULL, fn};
    uint64_t elements = 0;
    for (uint64_t i = 0; i < n; i++) elements += jobs[i].count;
    threads = worth(elements, threads);
    b.before = threads > 1 ? malloc(n * sizeof *b.before) : NULL;
    if (!b.before) {
        work_alone(jobs, n, fn);
        return;
    }
    for (uint64_t i = 0; i < n; i++) b.before[i] = b.pieces, b.pieces += pieces_of(jobs[i].count);
    together(work, &b, threads);
    free(b.before);
}

/* Draws all jobs, none of them empty. Returns n; or, where it is asked to check, with nothing drawn, the number of the first
   that lies in memory that cannot be written. Jobs that share memory take effect in their order. The arguments are of the
   types that ctypes takes bytes and ints for if nothing is declared: looking declarations up costs a third of a small draw. */
int torchinit_fill(const job *jobs, int n, int threads, int set, int check) {
    int bad = check ? (int)first_unwritable(jobs, n) : n;
    if (bad < n) return bad;
    if (threads < 2 || n == 1 || apart(jobs, n)) run(jobs, n, threads, SETS[set].fn);
    else for (int i = 0; i < n; i++) run(jobs + i, 1, threads, SETS[set].fn);
    return n;
}

typedef struct {
    const char *data;
    int dtype;
    uint64_t n, next;
    double shift;
    sums *parts; /* one for each piece, so that their sum does not depend on threads */
    sums_fn *fn;
} tally;

static void *add_up(void *argument) {
    tally *t = argument;
    uint64_t mode = float_mode_set(), piece, pieces = pieces_of(t->n);
    while ((piece = __atomic_fetch_add(&t->next, 1, __ATOMIC_RELAXED)) < pieces) {
        uint64_t left = t->n - piece * PIECE;
        t->fn(t->data + piece * PIECE * ELEMENT_SIZE[t->dtype], t->dtype, left < PIECE ? left : PIECE, t->shift, t->parts + piece);
    }
    float_mode_restore(mode);
    return NULL;
}

static void include(sums *s, const sums *part) {
    s->total += part->total, s->square += part->square;
    if (part->low < s->low || part->low != part->low) s->low = part->low;
    if (part->high > s->high || part->high != part->high) s->high = part->high;
}

/* The sums of count > 0 values that lie behind each other, as distances from the first: so less is lost where they are close
   to each other and far from zero. 0 where there is no memory to work in. */
static int sums_of(const stretch *of, int threads, int set, shifted *s) {
    uint64_t pieces = pieces_of(of->count);
    sums small[FEW_PIECES];
    tally t = {of->data, of->dtype, of->count, 0, 0, pieces > FEW_PIECES ? malloc(pieces * sizeof *t.parts) : small, SETS[set].sums};
    if (!t.parts) return 0;
    t.fn(of->data, of->dtype, 1, 0, &s->sums);
    s->shift = t.shift = s->sums.total;
    together(add_up, &t, worth(of->count, threads));
    s->sums = t.parts[0];
    for (uint64_t i = 1; i < pieces; i++) include(&s->sums, t.parts + i);
    if (t.parts != small) free(t.parts);
    return 1;
}

/* The sums of n stretches, in one call, since a call from Python costs as much as those of a small tensor. Returns how many
   were done before there was no memory to work in. */
uint64_t torchinit_sums(const stretch *of, uint64_t n, int threads, int set, shifted *s) {
    for (uint64_t i = 0; i < n; i++) if (!sums_of(of + i, threads, set, s + i)) return i;
    return n;
}

typedef struct {
    const char *from;
    char *to;
    uint64_t bytes, next, largest;
    int width;
    largest_fn *find; /* or else copy */
    copy_fn *copy;
} sweep;

static void *sweep_through(void *argument) {
    sweep *s = argument;
    uint64_t largest = 0, at;
    while ((at = __atomic_fetch_add(&s->next, STRETCH, __ATOMIC_RELAXED)) < s->bytes) {
        uint64_t n = s->bytes - at < STRETCH ? s->bytes - at : STRETCH, found = 0;
        if (s->find) found = s->find(s->from + (s->bytes - at - n), s->width, n / s->width);
        else s->copy(s->to + at, s->from + at, n);
        if (found > largest) largest = found;
    }
    uint64_t seen = __atomic_load_n(&s->largest, __ATOMIC_RELAXED);
    while (seen < largest)
        if (__atomic_compare_exchange_n(&s->largest, &seen, largest, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) break;
    return NULL;
}

uint64_t torchinit_largest(const char *data, int width, uint64_t n, int threads, int set) {
    sweep s = {.from = data, .bytes = n * width, .width = width, .find = SETS[set].largest};
    together(sweep_through, &s, worth(s.bytes / 4, threads));
    return s.largest;
}

/* Copies between stretches that do not overlap; the target can be written. */
void torchinit_copy(char *to, const char *from, uint64_t bytes, int threads, int set) {
    sweep s = {.from = from, .to = to, .bytes = bytes, .copy = SETS[set].copy};
    together(sweep_through, &s, worth(bytes / 4, threads));
}
