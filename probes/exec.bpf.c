/* Programs that start, at the raw tracepoint sched_process_exec: by then the process has its new
 * name. Only those are told whose name may be one of QEMU's (qtrace/process/process_list.py decides).
 */
#include <uapi/linux/ptrace.h>
#include "exec.h"
#include "thread.h"

BPF_RINGBUF_OUTPUT(execs, 1);
/* How many found no room: a look at /proc has to find them. */
BPF_ARRAY(execs_lost, u64, 1);

int on_exec(void *unused)
{
    char comm[16];
    bpf_get_current_comm(comm, sizeof(comm));
    int qemu = comm[0] == 'q' && comm[1] == 'e' && comm[2] == 'm' && comm[3] == 'u';
    int wrapped = comm[0] == '.' && comm[1] == 'q' && comm[2] == 'e' && comm[3] == 'm';
    int kvm = comm[0] == 'k' && comm[1] == 'v' && comm[2] == 'm';
    if (!qemu && !wrapped && !kvm)
        return 0;
    struct exec_event *event = execs.ringbuf_reserve(sizeof(struct exec_event));
    if (!event) {
        int zero = 0;
        u64 *count = execs_lost.lookup(&zero);
        if (count)
            __sync_fetch_and_add(count, 1);
        return 0;
    }
    event->time_ns = bpf_ktime_get_ns();
    event->tgid = current_ids() >> 32;
    event->unused = 0;
    __builtin_memcpy(event->comm, comm, sizeof(comm));
    execs.ringbuf_submit(event, 0);
    return 0;
}
