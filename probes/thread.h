/* Which thread meets a probe, by the number that user space here knows it by: on a host the
 * kernel's own, inside of a pid namespace another. */
#include "holes.h"

/* The process in the upper half, the thread in the lower one. */
static __always_inline u64 current_ids(void)
{
    struct bpf_pidns_info ids = {};
    if (NUMBER(NAMESPACED) &&
        bpf_get_ns_current_pid_tgid((u32)NUMBER(NAMESPACE_DEVICE), (u32)NUMBER(NAMESPACE_INODE),
                                    &ids, sizeof(ids)) == 0)
        return (u64)ids.tgid << 32 | ids.pid;
    return bpf_get_current_pid_tgid();
}

static __always_inline u32 current_thread(void)
{
    return current_ids();
}
