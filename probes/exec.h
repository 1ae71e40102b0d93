/* What the exec of what may be a QEMU program sends to user space: the one definition. */

struct exec_event {
    u64 time_ns; /* CLOCK_MONOTONIC */
    u32 tgid;
    u32 unused;
    char comm[16]; /* the name of its file, as far as 15 bytes go */
};
