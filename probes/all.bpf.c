/* Every bottom half: a small record from each cheap site of the event loop (docs/probes.md).
 *
 * Which registers hold what at a site is the compiler's choice, and where QEMUBH keeps what that of
 * QEMU's version: qtrace/sites/all_sites.py finds out, and what it finds fills the holes.
 */
#include <uapi/linux/ptrace.h>
#include "all.h"
#include "losses.h"
#include "thread.h"
#include "stack.h"

#define NO_WAKEUP 1 /* BPF_RB_NO_WAKEUP: the reader comes by itself */

/* How large the maps are is told when they are made: here all are as small as can be.
 *
 * One ring per CPU. With one for all, CPUs wait for its lock, and since Linux 6.15 that lock
 * (rqspinlock) may give up: the reservation fails although there is room. */
BPF_RINGBUF_OUTPUT(ring, 1);
BPF_ARRAY_OF_MAPS(rings, "ring", 1);

/* Whole stacks, and how many events each function has had. */
BPF_RINGBUF_OUTPUT(events, 1);
BPF_PERCPU_ARRAY(turns, u64, 32);

static __always_inline struct all_event *begin(struct pt_regs *regs)
{
    int cpu = bpf_get_smp_processor_id();
    void *own = rings.lookup(&cpu);
    if (!own) {
        count_lost(regs);
        return 0;
    }
    struct all_event *event = bpf_ringbuf_reserve(own, sizeof(*event), 0);
    if (!event) {
        count_lost(regs);
        return 0;
    }
    event->time_ns = bpf_ktime_get_ns();
    event->ip = PC(regs);
    event->tid = current_thread();
    return event;
}

/* By way of the BPF stack: the kernel checks where user memory is copied to, and looks a ring
 * buffer's page up among all its mappings for that. What cannot be read is a zero. */
static __always_inline u64 read_word(u64 address)
{
    u64 word = 0;
    bpf_probe_read_user(&word, 8, (void *)address);
    return word;
}

static __always_inline void read_bottom_half(struct all_event *event, u64 bh)
{
    event->bh = bh;
    if (NUMBER(BH_IN_A_ROW)) {
        u64 words[4] = {};
        bpf_probe_read_user(words, 32, (void *)bh);
        event->ctx = words[0];
        event->name = words[1];
        event->callback = words[2];
        event->opaque = words[3];
        return;
    }
    event->ctx = read_word(bh + NUMBER(BH_CTX));
    event->name = NUMBER(BH_HAS_NAME) ? read_word(bh + NUMBER(BH_NAME)) : 0;
    event->callback = read_word(bh + NUMBER(BH_CALLBACK));
    event->opaque = read_word(bh + NUMBER(BH_OPAQUE));
}

/* Without room the event has no whole stack: nothing is missing but that. */
static __always_inline void sample(struct pt_regs *regs, u64 time_ns)
{
    u64 every = NUMBER(STACKS_EVERY);
    int turn = NUMBER(TURN);
    if (!every)
        return;
    u64 *count = turns.lookup(&turn);
    if (!count || ++*count % every)
        return;
    struct watch_event *event = events.ringbuf_reserve(sizeof(struct watch_event));
    if (!event)
        return;
    event->time_ns = time_ns;
    event->tid = current_thread();
    COPY_REGISTERS(event->registers, regs);
    copy_stack(event, regs);
    events.ringbuf_submit(event, NO_WAKEUP);
}

/* Behind the atomic OR of QEMUBH's flags, in aio_bh_enqueue() or wherever that is inlined. */
int enqueue(struct pt_regs *regs)
{
    struct all_event *event = begin(regs);
    if (!event)
        return 0;
    read_bottom_half(event, REGISTER(BH));
    event->caller[0] = CODE(read_word(PLACE(CALLER)));
    event->caller[1] = 0;
    u32 new_flags = NUMBER(NEW_FLAGS_ARE_KNOWN) ? REGISTER(NEW_FLAGS) : 0;
    /* What was there before: cmpxchg leaves it in rax, aarch64's helpers in x0. */
    event->flags = (RESULT(regs) & 0xffff) | new_flags << 16;
    event->stack = 0;
    sample(regs, event->time_ns);
    bpf_ringbuf_submit(event, NO_WAKEUP);
    return 0;
}

/* aio_bh_call(bh), at its first instruction, or where it is inlined before the callback's call. */
int run(struct pt_regs *regs)
{
    if (NUMBER(RUN_IF_EQUAL) && !EQUAL(regs))
        return 0;
    struct all_event *event = begin(regs);
    if (!event)
        return 0;
    read_bottom_half(event, REGISTER(BH));
    event->caller[0] = CODE(read_word(PLACE(POLL_CALLER)));
    event->caller[1] = CODE(read_word(PLACE(OUTER_CALLER)));
    event->flags = 0;
    event->stack = SP(regs) + NUMBER(RUN_DEPTH);
    sample(regs, event->time_ns);
    bpf_ringbuf_submit(event, NO_WAKEUP);
    return 0;
}

/* In aio_bh_poll(), after aio_bh_call(). The bottom half may be freed by now. */
int ended(struct pt_regs *regs)
{
    struct all_event *event = begin(regs);
    if (!event)
        return 0;
    event->bh = NUMBER(BH_IS_KNOWN) ? REGISTER(BH) : 0;
    event->ctx = event->name = event->callback = event->opaque = 0;
    event->caller[0] = event->caller[1] = 0;
    event->flags = 0;
    event->stack = SP(regs);
    bpf_ringbuf_submit(event, NO_WAKEUP);
    return 0;
}

/* A call to qemu_bh_cancel(bh), its beginning, or behind the atomic AND in it. */
int cancel(struct pt_regs *regs)
{
    struct all_event *event = begin(regs);
    if (!event)
        return 0;
    read_bottom_half(event, REGISTER(BH));
    event->caller[0] = event->caller[1] = 0;
    event->flags = event->stack = 0;
    bpf_ringbuf_submit(event, NO_WAKEUP);
    return 0;
}

/* aio_co_schedule(ctx, co), at its first instruction. */
int co_schedule(struct pt_regs *regs)
{
    struct all_event *event = begin(regs);
    if (!event)
        return 0;
    event->bh = event->name = event->callback = 0;
    event->ctx = FIRST(regs);
    event->opaque = SECOND(regs);
    event->caller[0] = RETURNS_TO(regs);
    event->caller[1] = 0;
    event->flags = event->stack = 0;
    bpf_ringbuf_submit(event, NO_WAKEUP);
    return 0;
}
