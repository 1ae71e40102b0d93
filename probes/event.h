/* What one hit of a watched site sends to user space. The one definition: the recorder
 * takes the layout from bcc, which takes it from here. */

#define REGISTERS 17 /* DWARF order 0-15, then rip */
#define CANDIDATES 6 /* the callee-saved registers: rbx, rbp, r12-r15 */
#define QEMUBH_BYTES 64
#define PAGE_BYTES 4096
#define STACK_PAGES 9 /* up to eight whole pages above the first, partial one */

struct watch_event {
    u64 time_ns; /* CLOCK_MONOTONIC */
    u64 registers[REGISTERS];
    u32 tid;
    u32 stack_end; /* valid bytes of `stack`, counted from the start of rsp's page */
    char comm[16];
    u8 candidates[CANDIDATES * QEMUBH_BYTES]; /* what each of these registers points at */
    u8 stack[STACK_PAGES * PAGE_BYTES];       /* from the start of rsp's page */
};
