/* Watching single bottom halves: one program for every site, told apart by rip.
 *
 * It sits at the call sites and callbacks of watched bottom halves and at rarely called
 * functions, never on a hot path, so that it can afford to copy the registers and the
 * stack: user space unwinds them and nothing else has to be probed (docs/probes.md).
 *
 * RING_PAGES is a -D option, a power of two.
 */
#include <uapi/linux/ptrace.h>
#include "event.h"

BPF_RINGBUF_OUTPUT(events, RING_PAGES);
/* Failed reservations by site. The ring buffer itself loses records silently. */
BPF_HASH(lost, u64, u64, 1024);

static __always_inline void read_candidate(struct watch_event *event, u32 index, u64 address)
{
    /* A register that points nowhere leaves zeros. */
    bpf_probe_read_user(&event->candidates[index * QEMUBH_BYTES], QEMUBH_BYTES, (void *)address);
}

/* An event of which the first `bytes` are used; nothing is reserved for the others. */
static __always_inline struct watch_event *begin(struct pt_regs *regs, u64 bytes)
{
    struct watch_event *event = events.ringbuf_reserve(bytes);
    if (!event) {
        u64 ip = regs->ip, zero = 0;
        u64 *count = lost.lookup_or_try_init(&ip, &zero);
        if (count)
            __sync_fetch_and_add(count, 1);
        return 0;
    }
    event->time_ns = bpf_ktime_get_ns();
    event->tid = (u32)bpf_get_current_pid_tgid();
    bpf_get_current_comm(event->comm, sizeof(event->comm));

    event->registers[0] = regs->ax;
    event->registers[1] = regs->dx;
    event->registers[2] = regs->cx;
    event->registers[3] = regs->bx;
    event->registers[4] = regs->si;
    event->registers[5] = regs->di;
    event->registers[6] = regs->bp;
    event->registers[7] = regs->sp;
    event->registers[8] = regs->r8;
    event->registers[9] = regs->r9;
    event->registers[10] = regs->r10;
    event->registers[11] = regs->r11;
    event->registers[12] = regs->r12;
    event->registers[13] = regs->r13;
    event->registers[14] = regs->r14;
    event->registers[15] = regs->r15;
    event->registers[16] = regs->ip;

    read_candidate(event, 0, regs->bx);
    read_candidate(event, 1, regs->bp);
    read_candidate(event, 2, regs->r12);
    read_candidate(event, 3, regs->r13);
    read_candidate(event, 4, regs->r14);
    read_candidate(event, 5, regs->r15);
    /* The first two arguments: a QMP command's name, a job's. */
    read_candidate(event, 6, regs->di);
    read_candidate(event, 7, regs->si);
    event->stack_end = 0;
    return event;
}

/* A step of a QMP command, a change of a job, a return: where it was reached is known. */
int on_step(struct pt_regs *regs)
{
    struct watch_event *event = begin(regs, offsetof(struct watch_event, stack));
    if (event)
        events.ringbuf_submit(event, 0);
    return 0;
}

/* A schedule, a run, a call: with the stack. */
int on_hit(struct pt_regs *regs)
{
    struct watch_event *event = begin(regs, sizeof(struct watch_event));
    if (!event)
        return 0;

    /* First to the end of the page, then page by page until a read fails: a copy that
     * crosses the end of the stack fails whole, and a coroutine's stack ends 0x70 bytes
     * above where snapshot_save_job_run() schedules. */
    u64 page = regs->sp & ~(u64)(PAGE_BYTES - 1);
    u32 inside = regs->sp & (PAGE_BYTES - 1);
    if (bpf_probe_read_user(&event->stack[inside], PAGE_BYTES - inside, (void *)regs->sp) == 0) {
        event->stack_end = PAGE_BYTES;
#pragma unroll
        for (u32 index = 1; index < STACK_PAGES; index++) {
            if (bpf_probe_read_user(&event->stack[index * PAGE_BYTES], PAGE_BYTES,
                                    (void *)(page + index * PAGE_BYTES)) != 0)
                break;
            event->stack_end = (index + 1) * PAGE_BYTES;
        }
    }
    events.ringbuf_submit(event, 0);
    return 0;
}
