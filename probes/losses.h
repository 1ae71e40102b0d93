/* Hits that leave no record: counted, as the ring buffers lose records silently. */
#include "registers.h"

/* Failed reservations by site. */
BPF_HASH(lost, u64, u64, 1024);
/* 1 while the recording lasts. Probes come and go one after the other: what finds no room before
 * all are there, or when the first has gone, belongs to no recording. */
BPF_ARRAY(recording, u32, 1);

static __always_inline void count_lost(struct pt_regs *regs)
{
    int first = 0;
    u32 *on = recording.lookup(&first);
    if (!on || !*on)
        return;
    u64 ip = PC(regs), zero = 0;
    u64 *count = lost.lookup_or_try_init(&ip, &zero);
    if (count)
        __sync_fetch_and_add(count, 1);
}
