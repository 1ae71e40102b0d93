/* What depends on the processor, in the order that qtrace/machine/arch_*.py have it: registers by
 * their DWARF numbers, the pc last; the candidates are those that a call keeps, then the first two
 * arguments. RESULT is what a function returns, RETURNS_TO where one goes back to before it has
 * changed a register, EQUAL what was compared last; CODE takes the signature off a return address. */
#ifndef SP
#if defined(__aarch64__) || defined(AS_AARCH64)

/* struct user_pt_regs: x0 to x30, sp, pc, pstate. */
#define GENERAL(regs, number) (((const u64 *)(regs))[number])
#define SP(regs) GENERAL(regs, 31)
#define PC(regs) GENERAL(regs, 32)
#define FIRST(regs) GENERAL(regs, 0)
#define SECOND(regs) GENERAL(regs, 1)
#define FIFTH(regs) GENERAL(regs, 4)
#define RESULT(regs) GENERAL(regs, 0)
#define RETURNS_TO(regs) CODE(GENERAL(regs, 30))
#define EQUAL(regs) (GENERAL(regs, 33) & 1 << 30) /* Z of pstate */
#define CODE(address) ((address) & (1ULL << 48) - 1)
#define REGISTERS 33
#define CANDIDATES 13
#define KEPT 19 /* and ten behind it */

#define COPY_REGISTERS(to, regs)                               \
    _Pragma("unroll") for (u32 number = 0; number < REGISTERS; number++) \
        (to)[number] = GENERAL(regs, number)

#define READ_CANDIDATES(event, regs)                                     \
    do {                                                                 \
        _Pragma("unroll") for (u32 number = 0; number < 11; number++)    \
            read_candidate(event, number, GENERAL(regs, KEPT + number)); \
        read_candidate(event, 11, FIRST(regs));                          \
        read_candidate(event, 12, SECOND(regs));                         \
    } while (0)

#else

#define SP(regs) ((regs)->sp)
#define PC(regs) ((regs)->ip)
#define FIRST(regs) ((regs)->di)
#define SECOND(regs) ((regs)->si)
#define FIFTH(regs) ((regs)->r8)
#define RESULT(regs) ((regs)->ax)
#define RETURNS_TO(regs) read_word((regs)->sp)
#define EQUAL(regs) ((regs)->flags & 1 << 6) /* ZF */
#define CODE(address) (address)
#define REGISTERS 17
#define CANDIDATES 8

#define COPY_REGISTERS(to, regs) \
    do {                         \
        (to)[0] = (regs)->ax;    \
        (to)[1] = (regs)->dx;    \
        (to)[2] = (regs)->cx;    \
        (to)[3] = (regs)->bx;    \
        (to)[4] = (regs)->si;    \
        (to)[5] = (regs)->di;    \
        (to)[6] = (regs)->bp;    \
        (to)[7] = (regs)->sp;    \
        (to)[8] = (regs)->r8;    \
        (to)[9] = (regs)->r9;    \
        (to)[10] = (regs)->r10;  \
        (to)[11] = (regs)->r11;  \
        (to)[12] = (regs)->r12;  \
        (to)[13] = (regs)->r13;  \
        (to)[14] = (regs)->r14;  \
        (to)[15] = (regs)->r15;  \
        (to)[16] = (regs)->ip;   \
    } while (0)

#define READ_CANDIDATES(event, regs)           \
    do {                                       \
        read_candidate(event, 0, (regs)->bx);  \
        read_candidate(event, 1, (regs)->bp);  \
        read_candidate(event, 2, (regs)->r12); \
        read_candidate(event, 3, (regs)->r13); \
        read_candidate(event, 4, (regs)->r14); \
        read_candidate(event, 5, (regs)->r15); \
        read_candidate(event, 6, (regs)->di);  \
        read_candidate(event, 7, (regs)->si);  \
    } while (0)

#endif
#endif
