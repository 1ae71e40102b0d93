/* How long bottom halves take, and have waited before: summed here, no record leaves the kernel
 * (docs/monitor.md). One program serves all QEMUs of a build: what belongs to which is told by the
 * process, in each key.
 *
 * The sites, and what fills the holes, are those of all.bpf.c.
 */
#include <uapi/linux/ptrace.h>
#include "losses.h"
#include "thread.h"

/* Powers of two of nanoseconds; user space reads as many as it tells, and the others together. */
#define BUCKETS 32
#define SHORTEST 10 /* the first: up to 1.024 us */

/* A run is met again at its end by the stack pointer of aio_bh_poll(): no two that go on have the
 * same, whatever coroutine or thread they are on by then. */
struct run_key {
    u64 sp;
    u64 tgid;
};

struct begun {
    u64 time_ns;
    u64 callback;
    u64 name;
    u64 waited_ns; /* 0: not known */
};

struct bh_key {
    u64 bh;
    u64 tgid;
};

struct sum_key {
    u64 callback;
    u64 tgid;
};

struct sum {
    u64 name;
    u64 ran_ns;
    u64 waited_ns;
    u64 runs[BUCKETS];
    u64 waits[BUCKETS];
};

BPF_HASH(running, struct run_key, struct begun, 4096);
/* When what is scheduled now was so first. */
BPF_HASH(scheduled, struct bh_key, u64, 16384);
BPF_HASH(sums, struct sum_key, struct sum, 4096);
/* What a sum begins as: it is too large for the stack. */
BPF_ARRAY(zeros, struct sum, 1);

static __always_inline void add(u64 *buckets, u64 ns)
{
    u64 left = (ns - (ns > 0)) >> SHORTEST, bucket = 0;
    if (left > 0x7fffffff)
        left = 0x7fffffff;
#pragma unroll
    for (u32 bits = 16; bits; bits /= 2) {
        if (left >> bits) {
            left >>= bits;
            bucket += bits;
        }
    }
    bucket += left > 0;
    /* The verifier wants to see that it fits. */
    asm volatile("" : "+r"(bucket));
    __sync_fetch_and_add(&buckets[bucket & (BUCKETS - 1)], 1);
}

/* As all.bpf.c has it. It counts from the first schedule since the last run, or cancel, on. */
int enqueue(struct pt_regs *regs)
{
    u64 flag = NUMBER(SCHEDULED_FLAG);
    if (RESULT(regs) & flag)
        return 0;
    if (NUMBER(NEW_FLAGS_ARE_KNOWN) && !(REGISTER(NEW_FLAGS) & flag))
        return 0;
    struct bh_key key = {.bh = REGISTER(BH), .tgid = current_ids() >> 32};
    u64 now_ns = bpf_ktime_get_ns();
    if (scheduled.update(&key, &now_ns))
        count_lost(regs);
    return 0;
}

int run(struct pt_regs *regs)
{
    if (NUMBER(RUN_IF_EQUAL) && !EQUAL(regs))
        return 0;
    u64 bh = REGISTER(BH), tgid = current_ids() >> 32;
    struct begun begun = {};
    if (NUMBER(BH_IN_A_ROW)) {
        u64 words[2] = {};
        bpf_probe_read_user(words, 16, (void *)(bh + 8));
        begun.name = words[0];
        begun.callback = words[1];
    } else {
        bpf_probe_read_user(&begun.callback, 8, (void *)(bh + NUMBER(BH_CALLBACK)));
        if (NUMBER(BH_HAS_NAME))
            bpf_probe_read_user(&begun.name, 8, (void *)(bh + NUMBER(BH_NAME)));
    }
    begun.time_ns = bpf_ktime_get_ns();
    if (NUMBER(WAITS)) {
        struct bh_key waiting = {.bh = bh, .tgid = tgid};
        u64 *since_ns = scheduled.lookup(&waiting);
        if (since_ns) {
            begun.waited_ns = begun.time_ns > *since_ns ? begun.time_ns - *since_ns : 1;
            scheduled.delete(&waiting);
        }
    }
    struct run_key key = {.sp = SP(regs) + NUMBER(RUN_DEPTH), .tgid = tgid};
    if (running.update(&key, &begun))
        count_lost(regs);
    return 0;
}

/* What was not run passes here in some builds, too: it has not begun. */
int ended(struct pt_regs *regs)
{
    u64 now_ns = bpf_ktime_get_ns();
    struct run_key key = {.sp = SP(regs), .tgid = current_ids() >> 32};
    struct begun *found = running.lookup(&key);
    if (!found)
        return 0;
    struct begun begun = *found;
    running.delete(&key);
    struct sum_key about = {.callback = begun.callback, .tgid = key.tgid};
    struct sum *sum = sums.lookup(&about);
    if (!sum) {
        int zero = 0;
        struct sum *none = zeros.lookup(&zero);
        if (none)
            sums.insert(&about, none);
        sum = sums.lookup(&about);
        if (!sum) {
            count_lost(regs);
            return 0;
        }
        sum->name = begun.name;
    }
    u64 took_ns = now_ns > begun.time_ns ? now_ns - begun.time_ns : 0;
    add(sum->runs, took_ns);
    __sync_fetch_and_add(&sum->ran_ns, took_ns);
    if (begun.waited_ns) {
        add(sum->waits, begun.waited_ns);
        __sync_fetch_and_add(&sum->waited_ns, begun.waited_ns);
    }
    return 0;
}
