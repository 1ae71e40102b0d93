/* What only the code of a QEMU tells is left open in the compiled programs, so that one image serves
 * every build: qtrace/record/ebpf/bpf_image.py fills it in before the kernel gets to see it.
 *
 * A number is a move of a constant that nothing else has. A register is a load from pt_regs, at an
 * offset that no register has; the kernel's verifier refuses loads from there at a variable one.
 * What a number decides costs nothing: the verifier removes the branch that cannot be taken.
 */
enum hole {
    BH, /* the register that holds the bottom half */
    BH_IS_KNOWN, /* whether one does */
    NEW_FLAGS, /* the register that holds QEMUBH's new flags */
    NEW_FLAGS_ARE_KNOWN,
    BH_CTX, /* offsets into QEMUBH */
    BH_NAME,
    BH_CALLBACK,
    BH_OPAQUE,
    BH_HAS_NAME, /* not before QEMU 6.1 */
    BH_IN_A_ROW, /* these four are its first words, in this order */
    RUN_IF_EQUAL, /* run() sits at a branch that skips the call, unless what was compared is equal */
    RUN_DEPTH, /* from the stack pointer where run() sits to the stack pointer of aio_bh_poll() */
    CALLER, /* where the return address of an enqueuing function lies; see PLACE */
    CALLER_OFFSET,
    CALLER_IS_POINTED_TO,
    CALLER_BEYOND,
    POLL_CALLER, /* where run() sits, that of aio_bh_poll() */
    POLL_CALLER_OFFSET,
    POLL_CALLER_IS_POINTED_TO,
    POLL_CALLER_BEYOND,
    OUTER_CALLER, /* and that of aio_poll() */
    OUTER_CALLER_OFFSET,
    OUTER_CALLER_IS_POINTED_TO,
    OUTER_CALLER_BEYOND,
    TURN, /* which of the counters of sampled stacks is the function's */
    STACKS_EVERY, /* of every Nth event of a probe the whole stack is copied; 0: of none */
    NAMESPACED, /* threads have the numbers of a pid namespace, whose file has */
    NAMESPACE_DEVICE,
    NAMESPACE_INODE,
    WAITS, /* whether it is summed how long bottom halves have waited */
    SCHEDULED_FLAG, /* of QEMUBH's flags */
};

#define FIRST_NUMBER 0x7a510000
#define FIRST_REGISTER 0x7e00

#define NUMBER(hole)                                                       \
    ({                                                                     \
        u64 number;                                                        \
        asm volatile("%0 = %1" : "=r"(number) : "i"(FIRST_NUMBER + hole)); \
        number;                                                            \
    })

#define REGISTER(hole)                                       \
    ({                                                       \
        u64 value;                                           \
        asm volatile("%0 = *(u64 *)(%1 + %2)"                \
                     : "=r"(value)                           \
                     : "r"(regs), "i"(FIRST_REGISTER + hole)); \
        value;                                               \
    })

/* An address: so many bytes from what a register holds; or from what lies there, where that is a
 * pointer (to the frame of a caller, which has its own in rbp). */
#define PLACE(hole)                                            \
    ({                                                         \
        u64 place = REGISTER(hole) + NUMBER(hole##_OFFSET);    \
        if (NUMBER(hole##_IS_POINTED_TO))                      \
            place = read_word(place) + NUMBER(hole##_BEYOND);  \
        place;                                                 \
    })
