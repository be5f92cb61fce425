/* What torch hands out: while a thread watches, the ends of all memory that torch allocates on the host for it get a
   stamp, and what stood there before is kept, by address, until the thread watches no more.
   Torch's allocator is an object with a table of functions; ours has a copy of that table with another `allocate`. This
   is built without torch: what it takes for granted of the table is checked before anything is changed. */
#include "kernel.h"
#include <stdlib.h>
#include <string.h>

typedef struct { void *data, *owner[2]; uint64_t device; } allocation; /* c10::DataPtr */
typedef allocation allocate_fn(void *allocator, size_t bytes);

#define HEADER 2   /* entries of a table before the one that an object points to */
#define ALLOCATE 2 /* of c10::Allocator, whose two destructors come first */
#define IS_SIMPLE 3
#define ENTRIES 16 /* more than there are: a later torch may have added some */

#define STAMP 0x000B0005002B0017u /* its first bytes for a head, its last for a tail, as in tracing/ends.py */
#define FIRST_ROOM 1024

typedef struct { uint64_t start, bytes, head, tail; } handed; /* a start of 0: a free slot */
typedef struct { uint64_t start, bytes; } place;
typedef struct { uint64_t index, head, tail; } trace;

static void *entries[HEADER + ENTRIES];
static void **ours = entries + HEADER; /* its address is that of an object whose class has the table */
static void *(*in_use)(void);
static void *theirs;
static allocate_fn *their_allocate;

static _Thread_local struct { handed *slots; uint64_t room, used, watches; } here;

static handed *slot(handed *slots, uint64_t room, uint64_t start) {
    uint64_t at = start * 0x9E3779B97F4A7C15u >> 32 & (room - 1);
    while (slots[at].start && slots[at].start != start) at = (at + 1) & (room - 1);
    return slots + at;
}

static int has_room(void) {
    if (2 * here.used < here.room) return 1;
    uint64_t room = here.room ? 2 * here.room : FIRST_ROOM;
    handed *slots = calloc(room, sizeof *slots);
    if (!slots) return 0;
    for (uint64_t i = 0; i < here.room; i++)
        if (here.slots[i].start) *slot(slots, room, here.slots[i].start) = here.slots[i];
    free(here.slots);
    here.slots = slots;
    here.room = room;
    return 1;
}

static uint64_t size_of_end(uint64_t bytes) { return bytes >= 16 ? 8 : bytes >= 8 ? 4 : bytes >= 4 ? 2 : 1; }

/* Stamps memory that holds nothing. */
void torchinit_watch_hand_out(char *start, uint64_t bytes) {
    const uint64_t stamp = STAMP;
    uint64_t size = size_of_end(bytes);
    char *tail = start + bytes - size;
    if (!has_room()) return;
    handed *kept = slot(here.slots, here.room, (uint64_t)start);
    here.used += !kept->start;
    *kept = (handed){(uint64_t)start, bytes, 0, 0};
    memcpy(&kept->head, start, size);
    memcpy(&kept->tail, tail, size);
    memcpy(tail, (const char *)&stamp + 8 - size, size);
    memcpy(start, &stamp, size); /* last, since a single byte is both ends */
}

static allocation allocate(void *allocator, size_t bytes) {
    (void)allocator;
    allocation fresh = their_allocate(theirs, bytes);
    if (here.watches && bytes && fresh.data) torchinit_watch_hand_out(fresh.data, bytes);
    return fresh;
}

/* Puts our allocator in the place of torch's own; returns whether it is there. `get`, `standard` and `set` are torch's
   functions, `is_simple` that which its table must name where we take it to: nothing is done where it does not, or where
   another allocator than torch's own is in use, whose functions may ask for more of their object than its table. */
int torchinit_watch_allocator(void *(*get)(void), void *(*standard)(void), void (*set)(void *, uint8_t), void *is_simple) {
    void *now = get();
    if (now == &ours) return 1;
    if (theirs || now != standard() || (*(void ***)now)[IS_SIMPLE] != is_simple) return 0;
    memcpy(entries, *(void ***)now - HEADER, sizeof entries);
    in_use = get;
    theirs = now;
    their_allocate = (allocate_fn *)ours[ALLOCATE];
    ours[ALLOCATE] = (void *)allocate;
    set(&ours, 0);
    return get() == &ours;
}

/* Begins a watch of this thread; they may nest. Returns 0, and does nothing, where another allocator has taken our place. */
int torchinit_watch_begin(void) {
    if (in_use() != &ours) return 0;
    here.watches++;
    return 1;
}

void torchinit_watch_end(void) {
    if (--here.watches) return;
    free(here.slots);
    here.slots = NULL;
    here.room = here.used = 0;
}

/* How many places in memory were handed out since the watch began. */
uint64_t torchinit_watch_places(void) { return here.used; }

/* All of them, with what stood there before. */
void torchinit_watch_records(handed *records) {
    for (uint64_t i = 0; i < here.room; i++)
        if (here.slots[i].start) *records++ = here.slots[i];
}

/* Whether a byte of the stamp is left at an end. */
static int is_left(const char *end, const char *stamp, uint64_t size) {
    for (uint64_t i = 0; i < size; i++)
        if (stamp[i] && end[i] == stamp[i]) return 1;
    return 0;
}

/* Which of n places in memory were handed out since the watch began, and may hold what is left of the stamp, with what
   stood there before; returns how many. Those that have another size by now are among them, and those that hold the
   stamp and have another address: what stood there is not known any more, and said to be zeros. */
uint64_t torchinit_watch_traces(const place *places, uint64_t n, trace *traces) {
    const uint64_t stamp = STAMP;
    uint64_t found = 0;
    for (uint64_t i = 0; here.used && i < n; i++) {
        uint64_t bytes = places[i].bytes, size = size_of_end(bytes);
        const char *head = (const char *)places[i].start, *tail = head + bytes - size;
        const handed *kept = slot(here.slots, here.room, places[i].start);
        if (!head) continue;
        if (kept->start) {
            const char *last = (const char *)&stamp + (bytes > 1 ? 8 - size : 0);
            if (bytes == kept->bytes && !is_left(head, (const char *)&stamp, size) && !is_left(tail, last, size)) continue;
        } else if (size < 8 || memcmp(head, &stamp, 8) || memcmp(tail, &stamp, 8)) continue;
        traces[found++] = (trace){i, kept->head, kept->tail};
    }
    return found;
}
